"""Ideal heatmaps, drawn from real labels, must come back as those labels.

The whole of coco-mini (train and validation) goes through the real path - file, box, crop matrix, heatmap,
decoding, back-projection, rescoring, OKS-NMS, pycocotools - with the network replaced by its own target. What
is lost on the way is lost by the codec or by the crop, and every lost person is named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from posekd import geometry, ops
from posekd.codecs import coordinates
from posekd.codecs.coordinates import Coordinates
from posekd.data import CocoKeypoints, CocoSettings, LoaderSettings, crop_loader
from posekd.engine.scoring.coco import coco_results
from posekd.inputs import prepare_crops
from posekd.metrics import CocoResult, PersonScore, evaluate_coco
from posekd.paradigms import TOP_DOWN, TopDownInference
from posekd.paradigms.inference import find_in_batches
from posekd.structures import CropBatch, InputSpec, PackedCropBatch

pytestmark = pytest.mark.data

SPEC = InputSpec(size=(256, 192))
HEATMAP = (64, 48)
DARK = TopDownInference(flip_test=False, decode="dark")
LOST = 0.95  # the strictest of the ten OKS thresholds

Batches = list[tuple[PackedCropBatch, CropBatch]]
"""What a network is asked about, and the labels in its crops."""


class Oracle(torch.nn.Module):
    """A network that knows the labels of the batch it is about to see."""

    spec = SPEC

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.keypoints = kind, torch.empty(0)

    def watch(self, batches: Batches) -> Iterator[PackedCropBatch]:
        for packed, crops in batches:
            self.keypoints = geometry.to_heatmap(crops.keypoints, 4)
            yield packed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ops.render_heatmaps(self.keypoints, HEATMAP, 2.0, self.kind)[0]


class CoordinateOracle(Oracle):
    """The same for a network that says fractions of the crop, which a sigmoid keeps inside it."""

    output = coordinates.NAME

    def __init__(self, flips: Sequence[int] | None) -> None:
        """`flips` for a flip test: every second call is then of the mirrored crops."""
        super().__init__("coordinates")
        self.flips, self.mirrored = flips, True

    def forward(self, images: torch.Tensor) -> Coordinates:
        self.mirrored = self.flips is not None and not self.mirrored
        points = self.keypoints[..., :2] * 4
        if self.flips is not None and self.mirrored:
            points = points[:, list(self.flips)]
            points = torch.stack((SPEC.size[1] - 1 - points[..., 0], points[..., 1]), -1)
        return Coordinates((points / torch.tensor([SPEC.size[1], SPEC.size[0]])).clamp(0, 1))


@dataclass
class CocoMini:
    truth: dict[str, Any]
    sources: list[CocoKeypoints]

    def batches(self, padding: float) -> Batches:
        settings = LoaderSettings(batch_size=64, workers=0, padding=padding)
        return [
            (packed, prepare_crops(packed, SPEC, source.records.skeleton.flip))
            for source in self.sources
            for packed in crop_loader(source, SPEC.size, settings, training=False)
        ]


@pytest.fixture(scope="module")
def coco_mini(real_data: Path) -> CocoMini:
    folder = real_data / "coco" / "coco-mini"
    sources = [
        CocoKeypoints(
            CocoSettings(
                str(folder / f"{split}2017"),
                str(folder / "annotations" / f"person_keypoints_{split}2017.json"),
            )
        )
        for split in ("train", "val")
    ]
    truths = [source.coco_ground_truth() for source in sources]
    merged = {key: truths[0][key] + truths[1][key] for key in ("images", "annotations")}
    return CocoMini({**merged, "categories": truths[0]["categories"]}, sources)


def score(data: CocoMini, batches: Batches, oracle: Oracle, settings: TopDownInference) -> CocoResult:
    skeleton = data.sources[0].records.skeleton
    found = find_in_batches(oracle, oracle.watch(batches), skeleton, settings)
    return evaluate_coco(data.truth, coco_results(TOP_DOWN.suppress(found, skeleton, settings)))


def joints_outside(data: CocoMini, batches: Batches) -> dict[int, list[str]]:
    """Annotation id -> names of the labelled keypoints that no pixel of the heatmap covers."""
    names = data.sources[0].records.skeleton.keypoints
    limit = torch.tensor([HEATMAP[1] - 0.5, HEATMAP[0] - 0.5])
    found = {}
    for _, crops in batches:
        points = geometry.to_heatmap(crops.keypoints, 4)
        outside = ((points[..., :2] < -0.5) | (points[..., :2] >= limit)).any(-1) & (points[..., 2] > 0)
        for sample, row in zip(crops.sample_ids.tolist(), outside, strict=True):
            found[sample] = [names[k] for k in row.nonzero()[:, 0].tolist()]
    return found


def describe(result: CocoResult, title: str, outside: dict[int, list[str]]) -> str:
    """All sizes, and every lost person with the reason."""
    sizes = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
    count = {n: sum(low <= p.area < high for p in result.people) for n, (low, high) in sizes.items()}
    lines = [
        title,
        "  " + "  ".join(f"{k} {v:.4f}" for k, v in result.numbers().items()),
        f"  people: {count}",
    ]
    for p in lost(result):
        missing = outside[p.annotation_id]
        why = f"outside the crop: {', '.join(missing)}" if missing else "rounding to heatmap pixels"
        lines.append(
            f"  lost at {LOST}: image {p.image_id}, annotation {p.annotation_id}, OKS {p.oks:.3f}, "
            f"{p.labelled} keypoints, area {p.area:.0f}: {why}"
        )
    return "\n".join(lines)


def lost(result: CocoResult) -> list[PersonScore]:
    return [p for p in result.people if p.oks < LOST]


def test_ideal_heatmaps_reach_ap_097_with_the_official_crop(coco_mini):
    """HRNet's padding of 1.25, both codecs. Nobody labelled here is small: AP is that of medium and large."""
    batches = coco_mini.batches(padding=1.25)
    outside = joints_outside(coco_mini, batches)
    rounded = score(coco_mini, batches, Oracle("msra"), TopDownInference(flip_test=False))
    exact = score(coco_mini, batches, Oracle("exact"), DARK)
    report = describe(rounded, "msra heatmaps, quarter decoding", outside)
    report += "\n" + describe(exact, "exact heatmaps, dark decoding", outside)
    print(report)

    assert len(exact.people) == 154, report
    assert min(p.area for p in exact.people) >= 32**2, report
    assert rounded.AP >= 0.97, report
    assert exact.AP >= 0.97, report
    assert rounded.AP50 == exact.AP50 == 1, report
    # With the exact codec the crop alone loses people: a labelled keypoint outside it has no heatmap.
    assert all(outside[p.annotation_id] for p in lost(exact)), report
    # Rounding to whole heatmap pixels loses only people that the exact codec finds.
    rounding = {p.annotation_id for p in lost(rounded) if not outside[p.annotation_id]}
    assert rounding.isdisjoint(p.annotation_id for p in lost(exact)), report


def test_nothing_is_lost_once_every_joint_is_in_the_crop(coco_mini):
    """A crop of twice the box holds all labelled keypoints; the exact codec then gives them back: ten ones."""
    batches = coco_mini.batches(padding=2.0)
    outside = joints_outside(coco_mini, batches)
    assert not any(outside.values())
    result = score(coco_mini, batches, Oracle("exact"), DARK)
    report = describe(result, "exact heatmaps, dark decoding, padding 2", outside)
    print(report)
    assert result.numbers() == pytest.approx(dict.fromkeys(result.numbers(), 1.0)), report
    assert not lost(result), report
    assert max(row.median_error for row in result.keypoints) < 0.1, report


def test_ideal_coordinates_reach_ap_097_with_the_official_crop(coco_mini):
    """As they are, and averaged with those of the mirrored crops; only what the crop leaves out is lost."""
    batches = coco_mini.batches(padding=1.25)
    outside = joints_outside(coco_mini, batches)
    flips = coco_mini.sources[0].records.skeleton.flip
    for settings in (TopDownInference(flip_test=False), TopDownInference()):
        result = score(coco_mini, batches, CoordinateOracle(flips if settings.flip_test else None), settings)
        report = describe(result, "coordinates", outside)
        assert len(result.people) == 154, report
        assert result.AP >= 0.97, report
        assert all(outside[p.annotation_id] for p in lost(result)), report


def test_the_released_flip_test_moves_every_coordinate_by_half_a_pixel(coco_mini):
    """Which costs little: an eighth of a heatmap pixel."""
    batches = coco_mini.batches(padding=2.0)
    flips = coco_mini.sources[0].records.skeleton.flip
    right = score(coco_mini, batches, CoordinateOracle(flips), TopDownInference())
    released = score(coco_mini, batches, CoordinateOracle(flips), TopDownInference(released_flip=True))
    assert right.AP == 1
    assert max(row.median_error for row in right.keypoints) < 0.01 < min(row.median_error for row in released.keypoints)
