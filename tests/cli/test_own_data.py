"""`posekd inspect` and `posekd init`: what a newcomer sees before she trains, and what training refuses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from helpers.coco_folder import labels, person, write
from helpers.threads import threads
from helpers.tiny_recipe import TINY_NET

from posekd.cli import main
from posekd.data.synthetic import SyntheticSettings, write_coco

TINY = ["--student.overrides", json.dumps(TINY_NET), "--train.epochs", "2", "--train.validate_every", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ten drawn images for training and four to validate on, as `posekd split` leaves them."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 10), ("val", 4)):
        settings = SyntheticSettings(size=(96, 96), people=(1, 2), split=split)
        written = write_coco(tmp_path / "data" / split, count, settings=settings)
        content = json.loads(Path(written.annotations).read_text())
        content["info"] = {"image_folder": f"{split}/{Path(written.images).name}"}
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(content))
    return tmp_path


def test_inspect_counts_judges_and_draws(folder, capsys):
    assert main(["inspect", "data", "--draw", "crops.png", "--count", "4"]) == 0
    out = capsys.readouterr().out
    assert "data/train.json: 10 images" in out
    assert "data/val.json: 4 images" in out
    assert "left_shoulder" in out
    assert "OKS sigmas: the usual ones of coco" in out
    assert "17 of 17 keypoints have fewer than 20 labels" in out
    assert "no image of the one is, byte for byte, in the other" in out
    height, width, _ = cv2.imread("crops.png").shape
    assert height > 300 < width


def test_inspect_shows_the_crops_of_a_recipe(folder, capsys):
    people = {"name": "synthetic", "images": 3}
    values = {"student": {"name": "smallerhrnet_1_5m", "overrides": {"size": [64, 64]}}, "train_data": people}
    values |= {"method": {"name": "associative_embedding"}, "train": {"validate_every": 0}}
    Path("mine.yaml").write_text(json.dumps(values))
    assert main(["inspect", "mine.yaml", "--train_data.images", "2", "--draw", "crops.jpg"]) == 0
    assert "train_data: 2 images" in capsys.readouterr().out
    assert cv2.imread("crops.jpg") is not None


def test_init_writes_a_recipe_that_trains_as_it_says(folder, capsys):
    """The commands that it prints, with a tiny network: the student learns from a teacher known by its card alone."""
    assert main(["init", "data", "--out", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    commands = [line.strip().split()[1:] for line in out.splitlines() if line.startswith("  posekd ")]
    assert commands == [
        ["train", "mine.yaml", "--run", "teacher"],
        ["train", "mine.yaml", "--run", "student"],
        ["eval", "runs/mine/student"],
    ]
    with threads(1):
        for words in commands[:2]:
            assert main([*words, *TINY]) == 0
        assert main([*commands[2], "--workers", "0"]) == 0
    told = capsys.readouterr().err
    assert "train_data: 10 images" in told
    assert "data: 4 images" in told
    card = json.loads(Path("runs/mine/student/best.json").read_text())
    assert card["recipe"]["teacher"]["name"] == ""
    assert main(["init", "data", "--out", "mine.yaml"]) == 2
    assert "mine.yaml is there already" in capsys.readouterr().err


def test_without_other_labels_a_part_is_held_out(folder, capsys):
    assert main(["init", "data/train.json", "--out", "mine.yaml"]) == 0
    assert "note: no labels to validate on were given" in capsys.readouterr().out
    with threads(1):
        assert main(["train", "mine.yaml", "--run", "alone", *TINY]) == 0
        assert main(["eval", "runs/mine/alone", "--workers", "0"]) == 0
    told = capsys.readouterr().err
    assert "train_data: 8 images" in told  # of ten, 15 % are one and a half
    assert "val_data: 2 images" in told
    assert "data: 2 images" in told


class TestRefusals:
    def recipe(self, folder, annotations, val=None):
        data = {"name": "coco", "images": str(folder / "images"), "annotations": str(annotations)}
        values = {"student": {"name": "elpn_v1", "overrides": TINY_NET}, "method": {"name": "supervised"}}
        values |= {"train_data": data, "val_data": data if val else None, "loader": {"batch_size": 2, "workers": 0}}
        values |= {"train": {"epochs": 1, "validate_every": int(bool(val))}, "out": str(folder / "run")}
        (folder / "mine.yaml").write_text(json.dumps(values))
        return str(folder / "mine.yaml")

    def test_corner_boxes_until_they_are_acknowledged(self, tmp_path, capsys):
        content = labels([person(i, i, bbox=[30, 10, 75, 55]) for i in (1, 2)], (1, 2))
        for a in content["annotations"]:
            a["keypoints"] = [v for k in range(17) for v in (32 + 2 * k, 12 + 2 * k, 2)]
        recipe = self.recipe(tmp_path, write(tmp_path, content).annotations)
        assert main(["train", recipe]) == 2
        told = capsys.readouterr().err
        assert "train_data: 2 of 2 boxes look like corners" in told
        assert "say `acknowledged: [corner_boxes]` in the recipe" in told
        assert not (tmp_path / "run" / "log.jsonl").exists()
        with threads(1):
            assert main(["train", recipe, "--acknowledged", "[corner_boxes]"]) == 0

    def test_one_image_in_both_splits(self, tmp_path, capsys):
        people = write(tmp_path, labels([person(i, i) for i in (1, 2)], (1, 2)))
        recipe = self.recipe(tmp_path, people.annotations, val=True)
        assert main(["train", recipe]) == 2
        assert "train_data and val_data: 2 of 2 training images are in both splits" in capsys.readouterr().err
        assert main(["inspect", recipe]) == 0
        assert "refused: 2 of 2 training images are in both splits" in capsys.readouterr().out

    def test_what_can_be_acknowledged_is_a_list_of_names(self, tmp_path, capsys):
        people = write(tmp_path, labels([person(1, 1)], (1,)))
        assert main(["train", self.recipe(tmp_path, people.annotations), "--acknowledged", "[everything]"]) == 2
        assert "acknowledged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nowhere.json"], "nowhere.json does not exist"),
        (["inspect", "data", "--optim.lr", "1"], "--optim.lr is no option of inspect"),
        (["inspect", "."], "holds no train.json (`posekd split` writes one)"),
        (["inspect", "data", "--draw", "crops.xyz"], "crops.xyz: pictures are written as .png or .jpg"),
        (["init", "data", "--latency", "5"], "--latency is a time such as 5ms or 0.02s, got '5'"),
        (["init", "data", "--images", "nowhere"], "image folder nowhere does not exist"),
    ],
)
def test_mistakes_are_sentences(folder, capsys, words, message):
    assert main(words) == 2
    assert message in capsys.readouterr().err
