"""`posekd eval`: a results file, a checkpoint, and what it says when the options do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from posekd.cli import main
from posekd.cli.eval_options import for_paradigm, inference_settings, read_options
from posekd.data import CocoSettings
from posekd.engine.evaluate import score_file
from posekd.engine.recipes.datasets import DATASETS
from posekd.models.registry import create_model
from posekd.models.weights import save_weights
from posekd.paradigms import BOTTOM_UP, TOP_DOWN

NAMES = ["nose", "left_eye", "right_eye"]
SIGMAS = ["--sigmas", "0.05", "0.05", "0.05"]


@pytest.fixture
def folder(tmp_path):
    """One image, one person with three keypoints, labels with and without annotations, perfect results."""
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((100, 120, 3), np.uint8))
    keypoints = [50.0, 30.0, 2, 55.0, 25.0, 2, 45.0, 25.0, 2]
    person = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [30, 10, 50, 80], "area": 4000, "iscrowd": 0}
    labels = {
        "images": [{"id": 1, "file_name": "1.png", "height": 100, "width": 120}],
        "categories": [{"id": 1, "name": "person", "keypoints": NAMES}],
        "annotations": [{**person, "num_keypoints": 3, "keypoints": keypoints}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(labels))
    (tmp_path / "bare.json").write_text(json.dumps({k: labels[k] for k in ("images", "categories")}))
    box = {"image_id": 1, "category_id": 1, "score": 0.9}
    (tmp_path / "boxes.json").write_text(json.dumps([{**box, "bbox": [30, 10, 50, 80]}]))
    (tmp_path / "results.json").write_text(json.dumps([{**box, "keypoints": keypoints}]))
    return tmp_path


@pytest.fixture
def checkpoint(folder):
    torch.manual_seed(0)
    model = create_model("elpn_v1", num_keypoints=3, size=(64, 64))
    save_weights(model, folder / "net.safetensors")
    return str(folder / "net.safetensors")


def test_a_results_file_is_scored(folder, capsys):
    words = ["eval", "--score-only", str(folder / "results.json"), "--annotations", str(folder / "gt.json")]
    assert main([*words, *SIGMAS, "--report", str(folder / "report.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]
    assert lines[2].split() == ["1.0000", "1.0000", "1.0000", "1.0000", "-"] * 2
    report = json.loads((folder / "report.json").read_text())
    assert list(report)[:10] == lines[1].split()
    assert report["AP"] == pytest.approx(1)
    assert report["people"][0]["annotation_id"] == 5
    assert [row["name"] for row in report["keypoints"]] == NAMES


def test_more_predictions_than_the_official_rule_counts_can_be_counted(folder, checkpoint, capsys):
    """The only hit has the lowest score of 21 predictions: precision 1/21. A network's own, likewise."""
    (hit,) = json.loads((folder / "results.json").read_text())
    miss = {**hit, "keypoints": [0.0, 0.0, 1.0] * 3}
    (folder / "many.json").write_text(json.dumps([{**hit, "score": 0.1}, *[miss] * 20]))
    words = ["eval", "--score-only", str(folder / "many.json"), "--annotations", str(folder / "gt.json"), *SIGMAS]
    report = ["--report", str(folder / "report.json")]
    assert main([*words, *report]) == 0
    assert json.loads((folder / "report.json").read_text())["AP"] == 0
    assert "1 images have more than 20 predictions" in capsys.readouterr().out
    assert main([*words, *report, "--max-dets", "21"]) == 0
    assert json.loads((folder / "report.json").read_text())["AP"] == pytest.approx(1 / 21)
    assert "up to 21 predictions of each image are counted" in capsys.readouterr().out
    assert main([*words, "--max-dets", "0"]) == 2
    assert "max_detections must be 1 or more, got 0" in capsys.readouterr().err
    data = ["--images", str(folder), "--annotations", str(folder / "gt.json"), *SIGMAS, "--workers", "0", "--no-flip"]
    assert main(["eval", checkpoint, *data, "--max-dets", "3"]) == 0
    assert "up to 3 predictions of each image are counted" in capsys.readouterr().out
    assert main(["eval", checkpoint, "--dataset", "mpii", *data[:4], "--max-dets", "3"]) == 2
    assert "--max-dets has no meaning for --dataset mpii" in capsys.readouterr().err


@pytest.mark.data
def test_the_published_example(real_data, capsys):
    files = real_data / "coco" / "eval-xtcocoapi"
    words = ["--score-only", str(files / "example_coco_preds.json")]
    assert main(["eval", *words, "--annotations", str(files / "example_coco_val.json")]) == 0
    numbers = capsys.readouterr().out.splitlines()[2].split()
    assert numbers == [
        "0.8609",
        "0.9931",
        "0.9109",
        "0.7756",
        "0.9373",
        "0.8750",
        "1.0000",
        "0.9167",
        "0.7800",
        "0.9429",
    ]


def test_a_checkpoint_is_evaluated_and_its_results_score_the_same(folder, checkpoint, capsys):
    words = ["--images", str(folder), "--annotations", str(folder / "gt.json"), "--workers", "0", "--device", "cpu"]
    results = str(folder / "out" / "results.json")
    assert main(["eval", checkpoint, *words, *SIGMAS, "--results", results]) == 0
    out = capsys.readouterr().out
    assert f"1 poses written to {results}" in out.replace("\n", "")
    settings = CocoSettings("", str(folder / "gt.json"), sigmas=[0.05] * 3)
    scores, _ = score_file(DATASETS["coco"], settings, Path(results))
    again = scores["coco_keypoints"].result
    assert again.predictions == 1
    assert [f"{v:.4f}" if v >= 0 else "-" for v in again.numbers().values()] == out.splitlines()[2].split()


def test_a_model_by_name_with_weights_gives_the_same_results(folder, checkpoint, capsys):
    common = ["--images", str(folder), "--annotations", str(folder / "gt.json"), "--workers", "0", *SIGMAS]
    one, two = str(folder / "one.json"), str(folder / "two.json")
    assert main(["eval", checkpoint, *common, "--results", one]) == 0
    named = ["elpn_v1", "--weights", checkpoint, "--size", "64", "64"]
    assert main(["eval", *named, *common, "--results", two]) == 0
    assert json.loads((folder / "one.json").read_text()) == json.loads((folder / "two.json").read_text())


class TestOutputs:
    @pytest.fixture
    def words(self, folder, checkpoint):
        annotations = ["--annotations", str(folder / "gt.json")]
        return ["eval", checkpoint, "--images", str(folder), *annotations, "--workers", "0", *SIGMAS]

    @pytest.mark.parametrize("option", ["--results", "--report", "--curve"])
    def test_what_cannot_be_written_is_refused_before_anything_is_read(self, folder, capsys, option):
        nothing = ["--images", "absent", "--annotations", "absent.json"]
        assert main(["eval", "absent.safetensors", *nothing, option, str(folder)]) == 2
        assert f"{folder} is a folder: give the name of a file" in capsys.readouterr().err
        assert main(["eval", "--score-only", "absent.json", *nothing[2:], option, str(folder / "gt.json" / "a")]) == 2
        assert f"{folder / 'gt.json' / 'a'} cannot be written: {folder / 'gt.json'} is not a folder" in (
            capsys.readouterr().err
        )

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    @pytest.mark.parametrize("option", ["--results", "--report"])
    def test_a_disk_that_fills_up_costs_the_file_and_not_the_numbers(self, words, capsys, option):
        assert main([*words, option, "/dev/full"]) == 2
        said = capsys.readouterr()
        assert said.out.splitlines()[1].split() == [
            "AP",
            "AP50",
            "AP75",
            "APM",
            "APL",
            "AR",
            "AR50",
            "AR75",
            "ARM",
            "ARL",
        ]
        assert "poses written" not in said.out
        assert "No space left on device" in said.err

    def test_standard_output_takes_the_report(self, folder):
        words = ["--score-only", str(folder / "results.json"), "--annotations", str(folder / "gt.json"), *SIGMAS]
        done = subprocess.run(
            [sys.executable, "-m", "posekd", "eval", *words, "--report", "/dev/stdout"],
            capture_output=True,
            text=True,
            check=True,
        )
        report, rest = json.JSONDecoder().raw_decode(done.stdout)
        assert report["AP"] == pytest.approx(1)
        assert "AP50" in done.stdout[rest:]


def test_a_key_without_a_file_is_refused(folder, checkpoint, capsys):
    words = ["--images", str(folder), "--annotations", str(folder / "gt.json"), "--weights-key", "ema"]
    assert main(["eval", checkpoint, *words]) == 2
    assert "--weights-key names an entry of the file that --weights gives: give both" in capsys.readouterr().err


def test_a_split_without_labels_writes_results(folder, checkpoint, capsys):
    words = ["--images", str(folder), "--annotations", str(folder / "bare.json"), "--workers", "0"]
    words += ["--detections", str(folder / "boxes.json"), "--results", str(folder / "test-dev.json"), *SIGMAS]
    assert main(["eval", checkpoint, *words]) == 0
    assert "no labels: results written, not scored" in capsys.readouterr().out
    (pose,) = json.loads((folder / "test-dev.json").read_text())
    assert set(pose) == {"image_id", "category_id", "keypoints", "score"}
    assert len(pose["keypoints"]) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--annotations", "{gt}"], "give a model and --images to evaluate, or --score-only FILE"),
        (["elpn_v1", "--annotations", "{gt}"], "give a model and --images"),
        (["x", "--score-only", "{gt}", "--annotations", "{gt}"], "give no model and no --images with it"),
        (["--score-only", "{gt}", "--annotations", "{gt}"], "must be a list of detections"),
        (["--score-only", "absent.json", "--annotations", "{gt}"], "no file absent.json"),
        (["elpn_v1", "--images", "{dir}", "--annotations", "{gt}"], "elpn_v1 has no weights yet: give --weights"),
        (["a.safetensors", "--images", "{dir}", "--annotations", "{gt}"], "no checkpoint at a.safetensors"),
        (["elpn_v7", "--weights", "w", "--images", "{dir}", "--annotations", "{gt}"], "unknown model 'elpn_v7'"),
        (["elpn_v1", "--images", "{dir}/no", "--annotations", "{gt}"], "does not exist (setting `images`)"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(folder, words, message, capsys):
    filled = [w.format(gt=folder / "gt.json", dir=folder) for w in words]
    assert main(["eval", *filled, *SIGMAS]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_other_keypoints_is_refused(folder, capsys):
    save_weights(create_model("elpn_v1", num_keypoints=17, size=(64, 64)), folder / "coco.safetensors")
    words = ["--images", str(folder), "--annotations", str(folder / "gt.json"), "--workers", "0", *SIGMAS]
    assert main(["eval", str(folder / "coco.safetensors"), *words]) == 2
    assert "the network has 17 heatmaps, the dataset 3 keypoints" in capsys.readouterr().err


def test_a_detection_threshold_is_one_of_boxes_or_of_peaks() -> None:
    words = ["net", "--weights", "w.pth", "--annotations", "a.json", "--detection-threshold", "0.3"]
    top_down, bottom_up = (for_paradigm(read_options(words), paradigm) for paradigm in (TOP_DOWN, BOTTOM_UP))
    assert top_down.data["detection_threshold"] == 0.3
    assert "detection_threshold" not in bottom_up.data
    assert inference_settings(bottom_up, BOTTOM_UP, None)[0].detection_threshold == 0.3
    without = for_paradigm(read_options(words[:-2]), BOTTOM_UP)
    assert inference_settings(without, BOTTOM_UP, None)[0].detection_threshold == 0.1
