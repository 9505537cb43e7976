"""`posekd eval` of a run: the run's own number from its checkpoint alone, and what options change is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.threads import threads
from helpers.tiny_recipe import TINY_NET

from posekd.cli import main
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import recipe_from_dict
from posekd.engine.train import train

SIGMAS = [0.11] * 17  # another AP than with COCO's


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on people in files, with a padding, test settings and sigmas of its own."""
    folder = tmp_path_factory.mktemp("run")
    written = write_coco(folder / "data", 12, seed=5, settings=SyntheticSettings(size=(96, 96), people=(1, 2)))
    data = {"name": "coco", "images": written.images, "annotations": written.annotations, "sigmas": SIGMAS}
    values = {
        "student": {"name": "elpn_v1", "overrides": TINY_NET},
        "method": {"name": "supervised", "sigma": 1.0},
        "train_data": data,
        "val_data": data,
        "augmentation": {"flip": 0.0, "rotation": 0.0, "scale": 0.0},
        "loader": {"batch_size": 4, "workers": 0, "padding": 1.6},
        "optim": {"name": "adamw", "lr": 0.01},
        "schedule": {"kind": "cosine"},
        "train": {"epochs": 30, "validate_every": 30, "checkpoint_every": 30, "device": "cpu", "log_every": 10},
        "inference": {"flip_test": False, "decode": "dark", "keypoint_threshold": 0.05},
        "out": str(folder / "run"),
        "acknowledged": ["shared_images"],
    }
    with threads(1):
        train(recipe_from_dict(values))
    (validation,) = [record for record in read_log(folder / "run" / "log.jsonl") if record["kind"] == "validation"]
    return folder / "run", validation, written


def scores(folder, *words):
    file = folder / "report.json"
    with threads(1):
        assert (
            main(["eval", *words, "--workers", "0", "--device", "cpu", "--batch-size", "4", "--report", str(file)]) == 0
        )
    return json.loads(file.read_text())


def test_the_folder_of_a_run_repeats_its_number(run, tmp_path, capsys):
    folder, validation, _ = run
    assert validation["AP"] > 0.05  # it has learnt something: the settings below matter
    report = scores(tmp_path, str(folder))
    assert {name: report[name] for name in ("AP", "AP50", "AR")} == {n: validation[n] for n in ("AP", "AP50", "AR")}
    assert f"{folder}: data and settings are those of its run\n" in capsys.readouterr().err


def test_options_change_it_and_are_told(run, tmp_path, capsys):
    folder, validation, _ = run
    report = scores(tmp_path, str(folder / "best.safetensors"), "--padding", "1.25", "--decode", "argmax")
    assert report["AP"] != validation["AP"]
    told = capsys.readouterr().err
    assert "padding: 1.25, where the checkpoint's run had 1.6" in told
    assert "decode: argmax, where the checkpoint's run had dark" in told


def test_other_data_are_scored_with_the_sigmas_of_the_run(run, tmp_path):
    folder, validation, written = run
    words = ["--images", written.images, "--annotations", written.annotations]
    assert scores(tmp_path, str(folder), *words)["AP"] == validation["AP"]
    official = [str(0.05)] * 17
    assert scores(tmp_path, str(folder), *words, "--sigmas", *official)["AP"] != validation["AP"]


def test_a_bare_list_of_images_takes_the_keypoints_of_the_run(run, tmp_path):
    """A list without labels and without categories, as a script writes it; the boxes come from a detector."""
    folder, _, written = run
    image = json.loads(Path(written.annotations).read_text())["images"][0]
    (tmp_path / "list.json").write_text(json.dumps({"images": [image]}))
    box = {"image_id": image["id"], "category_id": 1, "bbox": [5, 5, 60, 80], "score": 0.9}
    (tmp_path / "boxes.json").write_text(json.dumps([box]))
    words = ["--images", written.images, "--annotations", str(tmp_path / "list.json"), "--workers", "0"]
    words += ["--detections", str(tmp_path / "boxes.json"), "--results", str(tmp_path / "found.json")]
    with threads(1):
        assert main(["eval", str(folder), *words, "--device", "cpu"]) == 0
    (pose,) = json.loads((tmp_path / "found.json").read_text())
    assert len(pose["keypoints"]) == 3 * 17


class TestJudging:
    """What eval says beside AP: errors over all people, AP at other sigmas, pictures, comparisons."""

    def test_errors_count_everybody_and_sigmas_are_tried(self, run, tmp_path, capsys):
        folder, validation, _ = run
        report = scores(tmp_path, str(folder), "--pck-pair", "left_shoulder", "right_hip")
        assert report["ap_by_sigmas"]["1"] == validation["AP"]
        assert report["ap_by_sigmas"]["0.5"] <= validation["AP"] <= report["ap_by_sigmas"]["2"]
        everybody = report["errors_by_box"]["keypoints"]
        assert everybody["all"]["labelled"] == sum(row["labelled"] for row in report["keypoints"])
        assert report["errors_by_box"]["people"] == len(report["people"])
        assert 0 < report["errors_by_pair"]["people"] <= len(report["people"])
        assert "relative to the distance left_shoulder to right_hip" in capsys.readouterr().out

    def test_the_best_and_the_worst_are_drawn(self, run, tmp_path):
        folder, *_ = run
        scores(tmp_path, str(folder), "--draw", str(tmp_path / "pictures"))
        found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
        assert found == ["best.png", "random.png", "worst.png"]

    def test_two_runs_are_compared_with_an_interval(self, run, tmp_path, capsys):
        folder, validation, _ = run
        file = tmp_path / "compared.json"
        words = ["--compare", str(folder), str(folder / "last.safetensors"), "--workers", "0", "--report", str(file)]
        with threads(1):
            assert main(["eval", *words, "--device", "cpu"]) == 0
        values = json.loads(file.read_text())
        assert set(values) == {"AP", "PCK@0.1 of the box"}
        # validated once, after the last step: best and last are the same network
        assert values["AP"]["before"] == values["AP"]["after"] == pytest.approx(validation["AP"])
        assert values["AP"]["low"] == values["AP"]["high"] == 0
        assert "no certain difference" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--compare", "{run}", "nowhere.safetensors"], "no checkpoint at nowhere.safetensors"),
            (["{run}", "--compare", "{run}", "{run}"], "--compare A B evaluates these two"),
            (["{run}", "--pck-pair", "nose", "tail"], "'tail' is not among the keypoints"),
        ],
    )
    def test_mistakes(self, run, capsys, words, message):
        filled = [word.format(run=run[0]) for word in words]
        with threads(1):
            assert main(["eval", *filled, "--workers", "0", "--device", "cpu"]) == 2
        assert message in capsys.readouterr().err
