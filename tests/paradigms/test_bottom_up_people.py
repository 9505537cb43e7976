"""What bottom-up evaluation makes of the people it found, and of networks that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from posekd.data import LoaderSettings
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.engine.evaluate import evaluate
from posekd.engine.scoring.coco import coco_results
from posekd.paradigms.bottom_up import BottomUpInference, boxes_around, suppress
from posekd.skeleton import COCO
from posekd.structures import InputSpec, Instances

SPEC = InputSpec(size=(64, 64))


def two_copies() -> Instances:
    points = np.stack([np.arange(17.0) * 7, np.arange(17.0) * 11, np.ones(17)], -1)[None]
    keypoints = np.concatenate((points, points, points)).astype(np.float32)
    keypoints[:, :, 0] += [[0.5], [0.0], [200.0]]
    points = torch.from_numpy(keypoints)
    boxes = boxes_around(points)
    return Instances(
        keypoints=points,
        scores=torch.tensor([0.2, 0.9, 0.5]),
        boxes=boxes,
        box_scores=torch.ones(3),
        areas=boxes[:, 2:].prod(1),
        image_ids=torch.full((3,), 4),
        sample_ids=torch.full((3,), -1),
    )


def test_copies_are_removed_only_when_asked():
    people = two_copies()
    everybody = suppress(people, COCO, BottomUpInference(oks_threshold=1.0))
    assert everybody.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert torch.equal(everybody.keypoints, people.keypoints[[1, 2, 0]])
    kept = suppress(people, COCO, BottomUpInference(oks_threshold=0.9))
    assert kept.scores.tolist() == pytest.approx([0.9, 0.5])


def test_results_are_in_cocos_format():
    results = coco_results(suppress(two_copies(), COCO, BottomUpInference()), category_id=1)
    assert [r["score"] for r in results] == pytest.approx([0.9, 0.5, 0.2])
    assert {r["image_id"] for r in results} == {4}
    assert results[0]["keypoints"][:6] == [0.0, 0.0, 1.0, 7.0, 11.0, 1.0]


class Nothing(nn.Module):
    """A network that sees nobody, or gives maps of another shape."""

    paradigm = "bottom_up"

    def __init__(self, value: float = 0.0, channels: int = 17) -> None:
        super().__init__()
        self.spec, self.value, self.channels = SPEC, value, channels

    def forward(self, x):
        h, w = x.shape[2:]
        coarse = torch.full((len(x), 2 * self.channels, h // 4, w // 4), self.value)
        return [coarse, torch.full((len(x), self.channels, h // 2, w // 2), self.value)]


def test_a_network_that_sees_nobody_scores_zero(tmp_path):
    source = SyntheticPeople(SyntheticSettings(images=2, size=(64, 96)))
    seen = []
    report = evaluate(
        Nothing(),
        source,
        loader=LoaderSettings(2, 0),
        results_file=tmp_path / "r.json",
        on_batch=lambda *n: seen.append(n),
    )
    assert report.main.result.AP == 0
    assert len(report.found) == 0
    assert (report.count, report.unit) == (2, "image")
    assert (tmp_path / "r.json").read_text() == "[]"
    assert seen == [(2, 2)]
    assert "no predictions" in report.note


def test_maps_that_do_not_fit_are_named():
    source = SyntheticPeople(SyntheticSettings(images=1, size=(64, 96)))
    loader = LoaderSettings(1, 0)
    with pytest.raises(ValueError, match=r"14 heatmaps and 28 coarse maps, the dataset 17 keypoints: 34 and 17"):
        evaluate(Nothing(channels=14), source, loader=loader)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite maps for images \[1\]"):
        evaluate(Nothing(float("nan")), source, loader=loader)
    model = nn.Conv2d(3, 17, 1)
    model.spec, model.paradigm = SPEC, "bottom_up"
    with pytest.raises(ValueError, match=r"a bottom-up network gives .* and perhaps"):
        evaluate(model, source, loader=loader)


def test_settings_that_cannot_be_are_refused():
    for changes, message in [
        ({"scales": (0.5, 2.0)}, "scales must contain 1"),
        ({"scales": ()}, "at least one"),
        ({"oks_threshold": 0.0}, "oks_threshold is an OKS"),
        ({"detection_threshold": -1.0}, "detection_threshold must be 0 or more, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            BottomUpInference(**changes)
