"""Training and evaluation on MPII and LSP: what is scored, what is said about the rest, and the prediction files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("scipy")

from helpers.pck_folders import head_boxes, hrnet_person, lsp_folder, mpii_folder, rect, release
from helpers.tiny_pose import TinyPose
from scipy.io import loadmat, savemat

from posekd.data import LoaderSettings, MpiiSettings, open_lsp, open_mpii
from posekd.data.sources.lsp import lsp_labels
from posekd.data.sources.mpii import mpii_labels
from posekd.data.synthetic import SyntheticPeople, SyntheticSettings
from posekd.engine.evaluate import evaluate
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import recipe_from_dict
from posekd.engine.scoring import NotScoredError
from posekd.engine.scoring.pck import score_pck, score_pckh, score_torso
from posekd.engine.scoring.pck_files import predictions, read_predictions
from posekd.engine.train import train
from posekd.paradigms import TopDownInference
from posekd.structures import InputSpec
from posekd.viz.curves import plot_curves, plot_pck

LOADER = LoaderSettings(batch_size=4, workers=0)
SPEC = InputSpec(size=(64, 64))
PLAIN = TopDownInference(flip_test=False, oks_threshold=1.0)  # a report lists everybody, as PCK scores everybody


def three_people(folder, boxes=((0, 0, 30, 40),) * 3, **settings):
    people = [hrnet_person(f"{name}.png", i) for i, name in enumerate("aba")]
    file = head_boxes(folder / "gt.mat", people, [list(box) for box in boxes])
    return mpii_folder(folder, people, head_boxes=file, **settings)


def found(source, shift=0.0):
    """The labels as predictions, moved to the right."""
    records = source.records if hasattr(source, "records") else source
    keypoints = records.keypoints.copy()
    keypoints[..., 0] += shift
    return keypoints, records.sample_ids


def poses(report, source):
    """The people of a report as plain values, in the order of the label file."""
    return predictions(report.found.keypoints.numpy(), report.found.sample_ids.numpy(), source)


class TestScoring:
    def test_half_a_head_size_is_the_limit(self, tmp_path):
        source = open_mpii(three_people(tmp_path))  # head size 0.6 * 50 = 30
        assert score_pckh(*found(source, 14.9), source.records)[0].mean == 100
        assert score_pckh(*found(source, 15.1), source.records)[0].mean == 0

    def test_the_order_of_the_poses_does_not_matter(self, tmp_path):
        source = open_mpii(three_people(tmp_path))
        keypoints, ids = found(source)
        result, note = score_pckh(keypoints[::-1], ids[::-1], source.records)
        torso, torso_note = score_torso(keypoints[::-1], ids[::-1], source.records)
        assert result.mean == torso.mean == 100
        assert note == torso_note == ""

    def test_people_without_a_head_box_are_counted_and_not_scored(self, tmp_path):
        source = open_mpii(three_people(tmp_path, [(0, 0, 30, 40), (5, 5, 5, 5), (0, 0, 30, 40)]))
        result, note = score_pckh(*found(source), source.records)
        torso, _ = score_torso(*found(source), source.records)
        assert (result.people, torso.people) == (2, 3)
        assert note == "1 of 3 people have no head box: not scored"

    def test_without_any_head_box_the_file_is_named_that_has_them(self, tmp_path):
        source = open_mpii(mpii_folder(tmp_path, [hrnet_person("a.png")]))
        with pytest.raises(NotScoredError) as error:
            score_pckh(*found(source), source.records)
        note = "no person has a head box, so there is nothing to divide by; give `head_boxes`, HRNet's gt_valid.mat"
        assert str(error.value) == note

    def test_poses_of_strangers_are_refused(self, tmp_path):
        source = open_mpii(three_people(tmp_path))
        with pytest.raises(ValueError, match=r"predictions for 1 people that the labels do not list: \[9\]"):
            score_pckh(np.zeros((1, 16, 2)), np.array([9]), source.records)

    def test_nobody_is_counted_twice(self, tmp_path):
        source = open_mpii(three_people(tmp_path))
        with pytest.raises(ValueError, match=r"1 people have more than one prediction, .* twice: \[2\]"):
            score_pckh(np.zeros((4, 16, 2)), np.array([0, 2, 1, 2]), source.records)

    def test_no_predictions_are_not_called_no_labels(self, tmp_path):
        source = open_mpii(three_people(tmp_path))
        for score in (score_pckh, score_torso):
            with pytest.raises(NotScoredError, match=r"^no predictions$"):
                score(np.zeros((0, 16, 2)), np.zeros(0, int), source.records)


class Corner(TinyPose):
    """A network of another number of keypoints than 3, on square crops."""

    def __init__(self, keypoints: int) -> None:
        super().__init__(SPEC, keypoints=keypoints)


class TestEvaluate:
    def test_a_report_of_mpii(self, tmp_path):
        source = open_mpii(three_people(tmp_path))
        settings = TopDownInference(oks_threshold=1.0)
        report = evaluate(Corner(16), source, settings, loader=LOADER, results_file=tmp_path / "r.json")
        assert list(report.scores) == ["pckh", "pck_torso"]
        assert list(report.numbers())[:3] == ["PCKh@0.5", "AUC", "PCKh@0.1"]
        assert list(report.numbers())[-1] == "torso PCK@0.5"
        written = json.loads((tmp_path / "r.json").read_text())
        assert [r["sample_id"] for r in written] == [0, 1, 2]  # the file's order, not the loader's
        assert [r["image"] for r in written] == ["a.png", "b.png", "a.png"]
        assert written == poses(report, source)

    @pytest.mark.parametrize("suffix", ["json", "mat"])
    def test_written_predictions_score_the_same(self, tmp_path, suffix):
        settings = three_people(tmp_path)
        file = tmp_path / "out" / f"r.{suffix}"
        source = open_mpii(settings)
        report = evaluate(Corner(16), source, PLAIN, loader=LOADER, results_file=file)
        labels = mpii_labels(settings)
        again, _ = score_pckh(*read_predictions(file, labels), labels)
        torso, _ = score_torso(*read_predictions(file, labels), labels)
        np.testing.assert_array_equal(again.curve, report.main.result[0].curve)
        assert torso.mean == report.scores["pck_torso"].result[0].mean
        if suffix == "mat":  # counts from 1
            preds = loadmat(file)["preds"]
            np.testing.assert_allclose(preds[1, :, 0], np.array(poses(report, source)[1]["keypoints"])[::3] + 1)

    def test_lsp_predictions_score_the_same(self, tmp_path):
        settings, _ = lsp_folder(tmp_path, range(1, 6), image_ids=[1, 2, 3, 4, 5])
        source = open_lsp(settings)
        for suffix in ("json", "mat"):
            report = evaluate(Corner(14), source, PLAIN, loader=LOADER, results_file=tmp_path / f"r.{suffix}")
            labels = lsp_labels(settings)
            again, _ = score_pck(*read_predictions(tmp_path / f"r.{suffix}", labels), labels)
            assert list(report.scores) == ["pck"], "no torso by ELPN's rule"
            np.testing.assert_array_equal(again.curve, report.main.result[0].curve)

    def test_a_test_split_is_written_not_scored(self, tmp_path):
        unlabelled = {"labelled": False, "head": False}
        images = [("a.png", True, [rect(1)], [1]), ("b.png", False, [rect(2, **unlabelled)], [1])]
        mpii_folder(tmp_path, [hrnet_person("a.png"), hrnet_person("b.png")])
        source = open_mpii(MpiiSettings(str(tmp_path / "images"), release(tmp_path / "r.mat", images), "test"))
        report = evaluate(Corner(16), source, PLAIN, loader=LOADER, results_file=tmp_path / "pred.mat")
        assert report.main is report.numbers() is None
        assert report.note == "no labels: results written, not scored"
        written = loadmat(tmp_path / "pred.mat", squeeze_me=True, struct_as_record=False)
        assert written["pred"].image.name == "b.png"
        assert len(written["pred"].annorect.annopoints.point) == 16

    def test_a_file_that_cannot_be_written_is_refused_before_the_network_runs(self, tmp_path):
        class Unasked(Corner):
            def forward(self, images):
                raise AssertionError("the network was run")

        people = SyntheticPeople(SyntheticSettings(images=2))
        with pytest.raises(ValueError, match=r"r.mat: this dataset's predictions are written as .json, not as .mat"):
            evaluate(Unasked(17), people, PLAIN, loader=LOADER, results_file=tmp_path / "r.mat")

    def test_people_of_unreadable_pictures_are_missing_from_the_file(self, tmp_path):
        settings = three_people(tmp_path)
        (tmp_path / "images" / "b.png").write_bytes(b"no picture")
        skipping = replace(LOADER, on_bad_image="skip")
        with pytest.warns(UserWarning, match="Its persons are skipped"):
            report = evaluate(Corner(16), open_mpii(settings), PLAIN, loader=skipping, results_file=tmp_path / "r.mat")
        assert report.main.result[0].people == 2
        assert np.isnan(loadmat(tmp_path / "r.mat")["preds"]).any(axis=(1, 2)).tolist() == [False, True, False]
        labels = mpii_labels(settings)
        again, _ = score_pckh(*read_predictions(tmp_path / "r.mat", labels), labels)
        assert again.mean == report.main.result[0].mean


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list of predictions with sample_id and keypoints"),
        ('[{"sample_id": 1, "keypoints": [1, 2, 3]}]', r"for 1: keypoints \(x, y, score\) must be 48 numbers, got"),
        ('[{"sample_id": 1, "keypoints": 3}]', "must be 48 numbers, got 3"),
        (json.dumps([{"sample_id": 1, "keypoints": [None] * 48}]), "must be 48 finite numbers"),
        ('[{"sample_id": 1.5, "keypoints": []}]', "prediction 0: sample_id must be a whole number, got 1.5"),
    ],
)  # fmt: skip
def test_a_wrong_json_of_predictions_is_answered(tmp_path, content, message):
    labels = mpii_labels(three_people(tmp_path))
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.json", labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": [1]}, r"neither 'preds' nor 'pos_pred_src'; it has \['x'\]"),
        ({"preds": "text"}, "preds must be numbers"),
        ({"pos_pred_src": np.zeros(2)}, r"pos_pred_src must hold \(x, y\) of 3 people"),
        ({"preds": np.zeros((2, 16, 2))}, r"must hold \(x, y\) of 3 people x 16 keypoints, it has shape \(2, 16, 2\)"),
    ],
)
def test_a_wrong_mat_of_predictions_is_answered(tmp_path, content, message):
    labels = mpii_labels(three_people(tmp_path))
    savemat(tmp_path / "p.mat", content)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "p.mat", labels)


def test_the_mat_of_one_person_has_lost_an_axis(tmp_path):
    person = [hrnet_person("a.png")]
    file = head_boxes(tmp_path / "gt.mat", person, [[0, 0, 30, 40]])
    labels = mpii_labels(mpii_folder(tmp_path, person, head_boxes=file))
    joints = np.array(person[0]["joints"])
    for name, values in (("preds", joints[None]), ("pos_pred_src", joints[..., None])):
        savemat(tmp_path / "p.mat", {name: values})
        assert score_pckh(*read_predictions(tmp_path / "p.mat", labels), labels)[0].mean == 100


def test_one_missing_joint_does_not_take_its_person_out_of_the_score(tmp_path):
    labels = mpii_labels(three_people(tmp_path))
    preds = labels.keypoints[..., :2] + 1
    preds[1, 3], preds[2] = np.nan, np.nan
    savemat(tmp_path / "p.mat", {"preds": preds})
    keypoints, ids = read_predictions(tmp_path / "p.mat", labels)
    assert ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match="a NaN or infinite number at a labelled keypoint, first for person 1"):
        score_pckh(keypoints, ids, labels)
    labels.keypoints[1, 3] = 0
    assert score_pckh(keypoints, ids, labels)[0].people == 2


@dataclass
class Run:
    """A short training on LSP files."""

    folder: object
    scores: dict[str, float]


@pytest.fixture(scope="module")
def lsp_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lsp")
    lsp_folder(folder, range(1, 9))
    data = {
        "name": "lsp",
        "images": str(folder / "images"),
        "annotations": str(folder / "joints.mat"),
        "split": "train",
    }
    net = {"size": [64, 64], "width": 8, "modules": [1], "blocks": 1, "stem_width": 8, "stage1_width": 4}
    recipe = recipe_from_dict(
        {
            "student": {"name": "elpn_v1", "overrides": {**net, "stage1_blocks": 1}},
            "method": {"name": "supervised"},
            "train_data": {**data, "image_ids": list(range(1, 9))},
            "val_data": {**data, "image_ids": [1, 2, 3]},
            "augmentation": {"rotation": 30.0, "scale": 0.25, "rotation_probability": 1.0, "distribution": "uniform"},
            "loader": {"batch_size": 4, "workers": 0},
            "train": {"epochs": 3, "validate_every": 1, "log_every": 1},
            "out": str(folder / "run"),
            "acknowledged": ["shared_images"],
        }
    )
    return Run(folder / "run", train(recipe))


class TestTraining:
    def test_the_best_network_is_that_of_the_best_pck(self, lsp_run):
        records = [r for r in read_log(lsp_run.folder / "log.jsonl") if r["kind"] == "validation"]
        assert [r["main"] for r in records] == ["PCK@0.2"] * 3
        best = json.loads((lsp_run.folder / "best.json").read_text())
        assert best["metrics"]["PCK@0.2"] == max(r["PCK@0.2"] for r in records)
        assert lsp_run.scores["PCK@0.2"] == records[-1]["PCK@0.2"]
        assert 0 <= lsp_run.scores["AUC"] <= 100

    def test_the_curves_are_drawn_in_percent(self, lsp_run, monkeypatch):
        figures = []
        monkeypatch.setattr("posekd.viz.curves.figure_to_png", lambda figure, path: figures.append(figure))
        plot_curves({"run": read_log(lsp_run.folder / "log.jsonl")}, lsp_run.folder / "c.png")
        axes = figures[0].axes[1]
        assert axes.get_ylabel() == "validation PCK@0.2"
        assert axes.get_ylim() == (0, 100)

    def test_validation_without_labels_says_why(self, tmp_path):
        from posekd.engine.build import make_validate

        unlabelled = {k: v for k, v in hrnet_person("a.png").items() if not k.startswith("joints")}
        source = open_mpii(mpii_folder(tmp_path, [unlabelled]))
        recipe = recipe_from_dict(
            {
                "student": {"name": "elpn_v1"},
                "method": {"name": "supervised"},
                "train_data": {"name": "synthetic"},
                "loader": {"workers": 0},
                "train": {"validate_every": 0},
            }
        )
        model: nn.Module = Corner(16)
        with pytest.raises(ValueError, match="nothing can be validated on val_data: no labels: not scored"):
            make_validate(recipe, source)(model)


def test_the_pck_picture(tmp_path):
    source = open_mpii(three_people(tmp_path))
    result = score_pckh(*found(source, 3.0), source.records)[0]
    plot_pck(result, tmp_path / "new" / "pck.png", "a title", unit="head size")
    assert (tmp_path / "new" / "pck.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_networks_of_several_stages_are_scored_by_the_last(tmp_path):
    class Stages(Corner):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
            last = super().forward(images)
            return [torch.zeros_like(last), last]

    source = open_mpii(three_people(tmp_path))
    one = evaluate(Corner(16), source, PLAIN, loader=LOADER)
    several = evaluate(Stages(16), source, PLAIN, loader=LOADER)
    assert poses(several, source) == poses(one, source)
    assert torch.equal(several.found.scores, one.found.scores)
