"""MPII's groups by `posekd eval`: a table, files that score the same, and what cannot be scored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from helpers.pck_folders import figure, head_boxes, hrnet_person, mpii_folder
from scipy.io import loadmat

from posekd.cli import main
from posekd.data.sources.mpii_groups import MpiiGroups, MpiiGroupsSettings
from posekd.engine.scoring import METRICS, NotScoredError
from posekd.structures import Instances

METRIC = METRICS["mpii_groups"]


@pytest.fixture
def settings(tmp_path) -> MpiiGroupsSettings:
    people = [hrnet_person(f"{name}.png", i, center=[81.0 + 80 * i, 121.0], scale=0.3) for i, name in enumerate("aab")]
    for person in people:
        person["joints"] = figure(16, 2, person["center"], 20.0).tolist()
    heads = head_boxes(tmp_path / "gt.mat", people, [[0, 0, 6, 8]] * 3)
    single = mpii_folder(tmp_path, people)
    return MpiiGroupsSettings(single.images, single.annotations, head_boxes=heads)


def labelled(source: MpiiGroups) -> Instances:
    """The labels as people found, with boxes of 0.5."""
    records = source.records
    keypoints = torch.from_numpy(records.keypoints.copy())
    keypoints[..., 2] = 0.8
    boxes, one = torch.from_numpy(records.boxes), torch.ones(len(records))
    ids = torch.from_numpy(records.image_ids[records.image_rows])
    return Instances(keypoints, 0.4 * one, boxes, 0.5 * one, boxes[:, 2:].prod(1), ids, torch.full_like(ids, -1))


def test_files_hold_whole_images_and_score_the_same(settings, tmp_path, capsys):
    source = MpiiGroups(settings)
    people = labelled(source)
    people.keypoints[1, :4, 0] += 3.5  # beyond half of 6
    people.keypoints[1, :, 2] = 0.6  # and ranked last
    score = METRIC.score(source, people)
    assert score.numbers["mAP"] == pytest.approx((10 * 100 + 4 * 200 / 3) / 14)
    METRIC.write(source, people, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(g["image"], g["group"], len(g["people"])) for g in found] == [("a.png", 1, 2), ("b.png", 1, 1)]
    first = np.reshape(found[0]["people"][0]["keypoints"], (16, 3))
    np.testing.assert_allclose(first[:, :2], source.groups[0].points[0], atol=1e-3)
    np.testing.assert_allclose(first[:, 2], 0.4, atol=1e-6)  # the keypoint's times the box's
    words = ["--score-only", str(tmp_path / "found.json"), "--dataset", "mpii_groups"]
    words += ["--annotations", settings.annotations, "--head-boxes", str(settings.head_boxes)]
    assert main(["eval", *words, "--report", str(tmp_path / "r.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("AP of 3 people in 2 groups, in percent")
    assert lines[1].split() == ["Head", "Shou", "Elb", "Wri", "Hip", "Knee", "Ank", "mAP"]
    assert lines[2].split()[0] == "100.0"
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["mAP"] == pytest.approx(score.numbers["mAP"])
    assert report["columns"]["Hip"] == pytest.approx(200 / 3)


def test_a_mat_file_counts_from_1(settings, tmp_path):
    source = MpiiGroups(settings)
    METRIC.write(source, labelled(source), tmp_path / "pred.mat")
    pred = loadmat(tmp_path / "pred.mat", squeeze_me=True, struct_as_record=False)["pred"]
    assert [p.image.name for p in pred] == ["a.png", "b.png"]
    point = pred[0].annorect[1].annopoints.point[5]
    np.testing.assert_allclose((point.x, point.y), source.groups[0].points[1, 5] + 1, atol=1e-3)
    assert (point.id, point.score) == (5, pytest.approx(0.4))


def test_what_cannot_be_scored(settings, tmp_path, capsys):
    source = MpiiGroups(replace(settings, head_boxes=None))
    with pytest.raises(NotScoredError, match="no person has a head box"):
        METRIC.score(source, labelled(source))
    words = ["eval", "--dataset", "mpii_groups", "--annotations", settings.annotations]
    words += ["--head-boxes", str(settings.head_boxes), "--score-only"]
    full = [{"image": "a.png", "group": 1, "people": []}, {"image": "b.png", "group": 1, "people": []}]
    for content, message in (
        (full[:1], "lack 1 of 2 groups, first group 1 of b.png"),
        ({}, "must be a list of groups"),
        ([{"image": "a.png"}], "entry 0 must have image, group and people"),
        ([{**full[0], "people": [{"keypoints": [1]}]}, full[1]], "keypoints (x, y, score) must be 48 numbers"),
        ([*full, full[0]], "lists 1 groups twice"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        assert main([*words, str(tmp_path / "bad.json")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bad.json").write_text(json.dumps(full))
    assert main([*words, str(tmp_path / "bad.json")]) == 0
