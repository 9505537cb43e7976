"""Ideal heatmaps and tags, painted from real labels, must come back as those people.

All images of coco-mini and CrowdPose's sample go through the real path - file, resize, flip merging, aggregation,
grouping, back-projection, official metric - with the network replaced by its own target. What is lost on the way is
lost by the maps: by people whose same keypoints share a peak, or by keypoints outside the image. All who are lost are
named.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle_network import BottomUpOracle

from posekd.data import CocoKeypoints, CocoSettings, LoaderSettings, image_loader
from posekd.engine.scoring.coco import coco_results
from posekd.metrics import CocoResult, CrowdPoseResult, PersonScore, evaluate_people
from posekd.paradigms.bottom_up import BottomUpInference, predict, resized, suppress
from posekd.structures import Instances

POOR = 0.9  # OKS below which a person is named, found or not


def open_split(images: Path, annotations: Path) -> CocoKeypoints:
    return CocoKeypoints(CocoSettings(str(images), str(annotations), keep_images="all"))


def oracle_score(sources: list[CocoKeypoints], settings: BottomUpInference) -> CocoResult:
    """The official numbers."""
    parts = []
    for source in sources:
        skeleton = source.records.skeleton
        oracle = BottomUpOracle(skeleton.flip, flip=settings.flip_test)
        loader = image_loader(
            source, (512, 512), LoaderSettings(4, 0), training=False,
            size_class=lambda h, w: resized(h, w, 512, 1.0, min(settings.scales)),
        )  # fmt: skip
        with torch.inference_mode():
            for packed in oracle.watch(loader):
                parts.append(predict(oracle, packed, oracle.spec, skeleton.flip, settings))
    truths = [source.coco_ground_truth() for source in sources]
    truth = {**truths[0], **{key: [e for t in truths for e in t[key]] for key in ("images", "annotations")}}
    skeleton = sources[0].records.skeleton
    people = suppress(Instances.concatenate(parts, skeleton.num_keypoints), skeleton, settings)
    return evaluate_people(truth, coco_results(people), skeleton.sigmas)


def reason(person: PersonScore, sources: list[CocoKeypoints]) -> str:
    if not person.found and person.oks >= POOR:
        return "a prediction is there, but refine gave it keypoints of another, to whom the greedy match then gave it"
    return nearest_rival(sources, person.annotation_id)


def nearest_rival(sources: list[CocoKeypoints], annotation_id: int) -> str:
    """How near, in pixels of the tag map, the keypoints of a person come to the same keypoints of others."""
    for source in sources:
        records = source.records
        (rows,) = np.nonzero(records.sample_ids == annotation_id)
        if len(rows):
            me, image = records.keypoints[rows[0]], records.image_rows[rows[0]]
            others = [r for r in np.flatnonzero(records.image_rows == image) if r != rows[0]]
            unit = min(records.image_sizes[image]) / 128
            shared = [
                np.linalg.norm(me[k, :2] - records.keypoints[r, k, :2]) / unit
                for r in others
                for k in np.flatnonzero((me[:, 2] > 0) & (records.keypoints[r, :, 2] > 0))
            ]
            near = sum(d < 5 for d in shared)
            return f"{near} of {int((me[:, 2] > 0).sum())} keypoints within 5 map pixels of another's"
    return "not among the records"


def describe(title: str, result: CocoResult, sources: list[CocoKeypoints]) -> str:
    sizes = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
    count = {n: sum(low <= p.area < high for p in result.people) for n, (low, high) in sizes.items()}
    lines = [title, "  " + "  ".join(f"{k} {v:.4f}" for k, v in result.numbers().items()), f"  people: {count}"]
    lines += [
        f"  {'found' if p.found else 'lost'}: image {p.image_id}, annotation {p.annotation_id}, OKS {p.oks:.3f}, "
        f"{p.labelled} keypoints, area {p.area:.0f}: {reason(p, sources)}"
        for p in result.people
        if not p.found or p.oks < POOR
    ]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def coco_mini(real_data: Path) -> list[CocoKeypoints]:
    folder = real_data / "coco" / "coco-mini"
    labels = folder / "annotations"
    return [open_split(folder / f"{s}2017", labels / f"person_keypoints_{s}2017.json") for s in ("train", "val")]


@pytest.mark.slow
@pytest.mark.data
def test_coco_mini(coco_mini):
    """Nobody labelled here is small. Two people of few keypoints are lost to the greedy match, none without refine."""
    result = oracle_score(coco_mini, BottomUpInference())
    report = describe("coco-mini", result, coco_mini)
    print(report)
    assert len(result.people) == 154
    assert sum(not p.found for p in result.people) <= 2, report
    assert result.APM >= 0.95, report
    assert result.APL >= 0.95, report


@pytest.mark.data
def test_crowdpose(real_data):
    folder = real_data / "crowdpose"
    sources = [open_split(folder, folder / "test_crowdpose.json")]
    result = oracle_score(sources, BottomUpInference())
    report = describe("crowdpose", result, sources)
    print(report)
    assert isinstance(result, CrowdPoseResult)
    assert result.AP >= 0.95, report
