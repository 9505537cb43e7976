"""Evaluation of top-down networks: from pixels to AP, results files, data without labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from posekd.data import LoaderSettings, PoseRecords
from posekd.engine.evaluate import evaluate
from posekd.engine.scoring.coco import coco_results
from posekd.paradigms import TopDownInference
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec

FLIP = (0, 2, 1, 4, 3)
FIVE = Skeleton("five", ("n", "left_a", "right_a", "left_b", "right_b"), (), FLIP, (0.05,) * 5)
PLAIN = TopDownInference(flip_test=False)
LOADER = LoaderSettings(batch_size=3, workers=0)


class Painted:
    """A `PoseSource` of people whose keypoints are squares of one grey each: the network below reads them."""

    def __init__(
        self, labelled: bool = True, boxes: Any = ((20, 30, 60, 80), (200, 100, 48, 64), (90, 20, 96, 128))
    ) -> None:
        rng = np.random.default_rng(3)
        self.labelled = labelled
        self.images = np.zeros((2, 240, 320, 3), np.uint8)
        keypoints = np.full((3, 5, 3), 2, np.float32)
        rows = np.array([0, 0, 1])
        for person, (x, y, w, h) in enumerate(boxes):
            keypoints[person, :, 0] = np.round(x + w * rng.uniform(0.1, 0.9, 5))
            keypoints[person, :, 1] = np.round(y + h * (0.1 + 0.2 * np.arange(5)))
            for k, (px, py) in enumerate(keypoints[person, :, :2].astype(int)):
                self.images[rows[person], py - 4 : py + 5, px - 4 : px + 5] = 40 * (k + 1)
        self.records = PoseRecords(
            skeleton=FIVE,
            image_ids=np.array([7, 9]),
            image_sizes=np.array([[240, 320]] * 2),
            image_rows=rows,
            keypoints=keypoints,
            boxes=np.array(boxes, np.float32),
            box_scores=np.array([0.9, 0.8, 0.7], np.float32),
            sample_ids=np.array([11, 12, 13]),
        )

    def load_image(self, row: int) -> np.ndarray:
        return self.images[row]

    def image_name(self, row: int) -> str:
        return f"painted {row}"

    def coco_ground_truth(self) -> dict[str, Any]:
        r = self.records
        people = [
            {
                "id": int(r.sample_ids[i]),
                "image_id": int(r.image_ids[r.image_rows[i]]),
                "category_id": 4,
                "bbox": r.boxes[i].tolist(),
                "area": float(r.boxes[i, 2] * r.boxes[i, 3]),
                "keypoints": r.keypoints[i].reshape(-1).tolist(),
            }
            for i in range(3)
        ]
        return {
            "images": [{"id": int(i)} for i in r.image_ids],
            "categories": [{"id": 4, "name": "five", "keypoints": list(FIVE.keypoints)}],
            "annotations": people if self.labelled else [],
        }


class Reader(nn.Module):
    """Sees the colours of `Painted`: heatmap k is the share of a 4 x 4 block that has keypoint k's colour."""

    spec = InputSpec(size=(256, 192), mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, :1]
        maps = [((red - 40 * (k + 1)).abs() < 4).float() for k in range(5)]
        return torch.nn.functional.avg_pool2d(torch.cat(maps, 1), 17, 4, 8)[..., :64, :48]


def test_a_network_without_a_spec_is_named():
    class Unsaid(nn.Module):
        pass

    with pytest.raises(ValueError, match="Unsaid has no `spec`"):
        evaluate(Unsaid(), Painted())


@pytest.mark.parametrize("flip", [False, True])
def test_evaluate_finds_painted_people_with_five_keypoints(flip, tmp_path):
    """From pixels to AP: crops, network, decoding, back-projection and scoring fit together."""
    calls = []
    settings = TopDownInference(flip_test=flip, shift_heatmaps=False)

    class Symmetric(Reader):
        """The mirror exchanges left and right; colours do not know that, so this network does."""

        def forward(self, images):
            heatmaps = super().forward(images)
            self.calls = getattr(self, "calls", 0) + 1
            return heatmaps[:, list(FLIP)] if flip and self.calls % 2 == 0 else heatmaps

    report = evaluate(
        Symmetric(),
        Painted(),
        settings,
        loader=LOADER,
        results_file=tmp_path / "r.json",
        on_batch=lambda *a: calls.append(a),
    )
    assert report.main is not None
    assert report.main.result.AP > 0.9
    assert (report.count, report.unit) == (3, "person")
    assert report.seconds > 0
    assert report.note == ""
    assert calls == [(3, 3)]
    results = json.loads((tmp_path / "r.json").read_text())
    assert results == coco_results(report.found, category_id=4)
    assert {r["category_id"] for r in results} == {4}
    assert max(row.median_error for row in report.main.result.keypoints) < 3


def test_data_without_labels_are_written_not_scored(tmp_path):
    file = tmp_path / "results.json"
    report = evaluate(Reader(), Painted(labelled=False), PLAIN, loader=LOADER, results_file=file)
    assert report.main is None
    assert report.note == "no labels: results written, not scored"
    assert len(json.loads(file.read_text())) == 3


def test_a_network_that_sees_nothing_scores_zero():
    """All-zero heatmaps: every keypoint at the crop's corner with score 0. Nothing fails."""

    class Blind(Reader):
        def forward(self, images):
            return super().forward(images) * 0

    report = evaluate(Blind(), Painted(), PLAIN, loader=LOADER)
    assert report.main is not None
    assert report.main.result.AP == 0
    assert {r["score"] for r in coco_results(report.found)} == {0.0}
    assert report.note.startswith("3 of 3 predictions have the score 0")


class Even(Reader):
    """Each keypoint in the upper left corner, with the same score."""

    def forward(self, images):
        heatmaps = torch.zeros(len(images), 5, 64, 48)
        heatmaps[:, :, 0, 0] = 0.5
        return heatmaps


@pytest.mark.parametrize(("shift", "told"), [(1, True), (0, False), (40, False)])
def test_ties_among_people_alike_are_told(shift, told):
    """Two crops of one image whose poses differ by a pixel: the first stays. By nothing, or much: no choice is made."""
    source = Painted(boxes=((20, 30, 60, 80), (20 + shift, 30, 60, 80), (90, 20, 96, 128)))
    source.records.box_scores[:] = 1
    report = evaluate(Even(), source, PLAIN, loader=LOADER)
    assert len(report.found) == (3 if shift == 40 else 2)
    expected = (
        "in 1 images people alike have equal scores, and their order decided whom OKS-NMS has kept: first image 7"
    )
    assert report.note == (expected if told else "")
    source.records.box_scores[1] = 0.9  # now the score decides
    assert evaluate(Even(), source, PLAIN, loader=LOADER).note == ""
