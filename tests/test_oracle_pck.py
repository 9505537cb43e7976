"""Ideal heatmaps, drawn from the labels of MPII and LSP, must come back as those labels.

Everything is what `posekd eval` does - labels, box, crop, flip test, decoding, back-projection, PCK - except that the
network is replaced by its own target. What is lost is lost by rounding to heatmap pixels or by the crop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from helpers.pck_folders import head_boxes, hrnet_person, lsp_folder, mpii_folder

from posekd import geometry, ops
from posekd.data import (
    LoaderSettings,
    LspSettings,
    MpiiSettings,
    PoseRecords,
    PoseSource,
    crop_loader,
    open_lsp,
    open_mpii,
)
from posekd.data.sources.mpii import mpii_records, read_mpii
from posekd.engine.evaluate import evaluate
from posekd.engine.scoring import Report
from posekd.inputs import prepare_crops
from posekd.metrics import PckResult
from posekd.paradigms import TopDownInference
from posekd.structures import CropBatch, InputSpec

SPEC = InputSpec(size=(256, 256))
LOADER = LoaderSettings(batch_size=64, workers=0)


class Oracle(torch.nn.Module):
    """A network that knows the labels of the crops that it will be asked about, also of their mirror images."""

    spec = SPEC

    def __init__(self, source: PoseSource, kind: str = "msra", flip: bool = False) -> None:
        super().__init__()
        self.kind, self.flip, self.order = kind, flip, list(source.records.skeleton.flip)
        batches = crop_loader(source, SPEC.size, LOADER, training=False)
        self.batches: Iterator[CropBatch] = (prepare_crops(packed, SPEC, self.order) for packed in batches)
        self.mirror: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.mirror is not None:
            keypoints, self.mirror = self.mirror, None
        else:
            batch = next(self.batches)
            assert torch.equal(batch.images, images)
            keypoints = batch.keypoints
            if self.flip:
                self.mirror = keypoints[:, self.order].clone()
                self.mirror[..., 0] = SPEC.size[1] - 1 - self.mirror[..., 0]
        return ops.render_heatmaps(geometry.to_heatmap(keypoints, 4), (64, 64), 2.0, self.kind)[0]


@dataclass
class WithoutPixels:
    """People whose images are not at hand: one grey pixel stands for each."""

    records: PoseRecords

    def load_image(self, row: int) -> np.ndarray:
        return np.full((1, 1, 3), 128, np.uint8)

    def image_name(self, row: int) -> str:
        return f"image {row}"


def score(source: PoseSource, kind: str = "msra", decode: str = "quarter", flip: bool = False) -> Report:
    settings = TopDownInference(flip_test=flip, decode=decode, oks_threshold=1.0)  # everybody stays in the report
    report = evaluate(Oracle(source, kind, flip), source, settings, loader=LOADER)
    assert report.main is not None
    result, joints = pck_of(report), source.records.keypoints[..., 2] > 0
    print(f"{result.name} of {result.people} people, {kind}/{decode}{' flip' if flip else ''}:", end=" ")
    print(f"{result.mean:.3f}, at 0.1 {result.mean_at_10:.2f}, AUC {result.auc:.2f}, {joints.sum()} keypoints")
    return report


def pck_of(report: Report, metric: str | None = None) -> PckResult:
    """What the dataset's first metric, or another one, says."""
    return report.scores[metric or report.metrics[0]].result[0]


def outside(source: PoseSource) -> np.ndarray:
    """Which labelled keypoints no heatmap pixel covers, bool `[N, K]`: lost to any network."""
    parts = []
    for packed in crop_loader(source, SPEC.size, LOADER, training=False):
        points = geometry.to_heatmap(prepare_crops(packed, SPEC, source.records.skeleton.flip).keypoints, 4)
        beyond = ((points[..., :2] < -0.5) | (points[..., :2] >= 63.5)).any(-1)
        parts.append(beyond & (points[..., 2] > 0))
    return torch.cat(parts).numpy()


def missed(source: PoseSource, report: Report, threshold: float) -> np.ndarray:
    """Which labelled keypoints came back farther than the threshold from their labels, bool `[N, K]`."""
    records = source.records
    found = report.found.keypoints[report.found.sample_ids.argsort(stable=True)].numpy().reshape(len(records), -1, 3)
    error = np.linalg.norm(found[..., :2] - records.keypoints[..., :2], axis=-1)
    return (error > threshold * records.reference_lengths[:, None]) & (records.keypoints[..., 2] > 0)


class TestWrittenFiles:
    """On files of the real formats that the test writes."""

    def test_mpii(self, tmp_path):
        people = [hrnet_person(f"{i % 5}.png", seed=i) for i in range(20)]
        file = head_boxes(tmp_path / "gt.mat", people, [[0, 0, 12, 16]] * 20)
        source = open_mpii(mpii_folder(tmp_path, people, head_boxes=file))
        for flip in (False, True):
            report = score(source, flip=flip)
            assert pck_of(report).mean == 100
            assert report.numbers()["PCKh@0.5"] == 100
            assert next(iter(report.numbers())) == "PCKh@0.5"
        assert pck_of(report, "pck_torso").name == "PCK@0.5"
        exact = pck_of(score(source, "exact", "dark"))
        assert exact.mean_at_10 == 100  # 1.2 pixels

    def test_lsp(self, tmp_path):
        settings, _ = lsp_folder(tmp_path, range(1, 9), image_ids=list(range(1, 9)))
        report = score(open_lsp(settings), "exact", "dark", flip=True)
        assert report.numbers()["PCK@0.2"] == 100
        assert "pck_torso" not in report.scores


@pytest.mark.data
class TestRealLabels:
    def test_mpii_validation_people(self, real_data: Path):
        """2958 people: 64x64 heatmaps of HRNet's crop."""
        file = real_data / "mpii" / "tompson-valid" / "detections.mat"
        source = WithoutPixels(mpii_records(read_mpii(MpiiSettings("", str(file))), first_pixel=1))
        rounded, exact = score(source), score(source, "exact", "dark")
        assert pck_of(rounded).people == 2958
        assert pck_of(rounded).mean >= 99
        assert pck_of(exact).mean >= 99
        lost = outside(source)
        print(f"{lost.sum()} keypoints lie outside their crop; {missed(source, exact, 0.5).sum()} of them are missed")
        for report in (rounded, exact):  # at half a head size nothing is lost but keypoints outside the crop
            assert not (missed(source, report, 0.5) & ~lost).any()

    def test_lsp_test_pictures(self, real_data: Path):
        """All 1000 test images, each cropped to itself; with the flip test."""
        folder = real_data / "lsp" / "lsp_dataset"
        source = open_lsp(LspSettings(str(folder / "images"), str(folder / "joints.mat"), "test"))
        rounded, exact = pck_of(score(source, flip=True)), pck_of(score(source, "exact", "dark"))
        assert rounded.people == 1000
        assert rounded.mean >= 99
        assert exact.mean >= rounded.mean
        assert exact.mean_at_10 >= 99
