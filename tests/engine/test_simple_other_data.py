"""SIMPLE's recipes on PoseTrack and on MPII's groups: they load as published or chosen, and run on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers.tiny_recipe import TINY_NET

from posekd.cli import main
from posekd.data.sources.mpii_groups import MpiiGroupsSettings
from posekd.data.sources.posetrack import PoseTrackSettings
from posekd.data.synthetic import SyntheticVideoSettings, write_posetrack
from posekd.engine.recipes.configs import find_config
from posekd.engine.recipes.recipe import read_recipe, recipe_from_dict, recipe_to_dict
from posekd.models import create_model, save_weights
from posekd.skeleton import POSETRACK
from posekd.tracking import TrackSettings

TINY = {
    "size": [64, 64], "width": 8, "modules": [1, 1], "blocks": 1, "stem_width": 8, "stage1_width": 4,
    "stage1_blocks": 1, "head_dim": 8, "head_mid": 4, "grouping_widths": [4, 8],
}  # fmt: skip


@pytest.mark.parametrize(("width", "rate", "batch"), [(18, 1.25e-4, 48), (32, 1e-4, 32)])
@pytest.mark.parametrize("data", ["posetrack", "mpii_groups"])
def test_recipes_of_fine_tuning(width, rate, batch, data):
    """From a run on COCO at half its learning rate; both stages."""
    recipe = read_recipe(f"simple/w{width}_{data}_512")
    assert recipe.student.backbone == f"runs/simple/w{width}_coco_512/best.safetensors"
    assert (recipe.optim.lr, recipe.loader.batch_size) == (rate, batch)
    assert recipe.method.mimic_from == recipe.schedule.milestones[0] + 1 < recipe.train.epochs
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    if data == "posetrack":
        assert isinstance(recipe.val_data, PoseTrackSettings)
        assert recipe.tracking == TrackSettings(flow="dis", propagate=5, keep=10, least_box=0.4)
    else:
        assert isinstance(recipe.val_data, MpiiGroupsSettings)
        assert (recipe.train_data.margin, recipe.val_data.margin) == (None, 0.75)
        assert recipe.teacher.overrides == {"size": [256, 256]}


def tiny(name: str, folder: Path, data: dict[str, object], teacher: tuple[str, list[int]] | None) -> str:
    """A shipped recipe on tiny data: its network and its length, but nothing else, are others."""
    values = yaml.safe_load(find_config(f"simple/{name}").read_text())
    overrides = TINY if teacher is not None else {**TINY_NET, "size": [64, 48]}
    values["student"] = {"name": values["student"]["name"], "overrides": overrides}
    if teacher is not None:
        values["teacher"] = {"name": "hrnet_w32", "overrides": {**TINY_NET, "size": teacher[1]}, "weights": teacher[0]}
        values["method"]["mimic_from"] = 2
    for group in ("train_data", "val_data"):
        values[group] = {k: v for k, v in values[group].items() if k in ("name", "margin")} | data
    values["acknowledged"] = ["shared_images"]
    values["loader"] = {"batch_size": 4, "workers": 0}
    values["train"] |= {"epochs": 2, "precision": "fp32", "validate_every": 2, "device": "cpu", "log_every": 1}
    values["out"] = str(folder / "run")
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return str(folder / "recipe.yaml")


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("posetrack")
    settings = write_posetrack(folder, SyntheticVideoSettings(videos=2, frames=2, size=(64, 96), people=(1, 2)))
    return {"images": settings.images, "annotations": settings.annotations}


def test_posetrack_by_the_ordinary_commands(tmp_path, videos, capsys):
    """Both stages, native results, the same numbers from the files, and other settings of tracking."""
    save_weights(create_model("hrnet_w32", 17, **{**TINY_NET, "size": [64, 48]}), tmp_path / "teacher.safetensors")
    recipe = tiny("w18_posetrack_512", tmp_path, videos, (str(tmp_path / "teacher.safetensors"), [64, 48]))
    assert main(["train", recipe]) == 0
    last = [r for r in records(tmp_path) if r["kind"] == "validation"][-1]
    assert {"mAP", "MOTA", "MOTP", "precision", "recall"} <= last.keys()
    card = json.loads((tmp_path / "run" / "last.json").read_text())
    assert tuple(card["skeleton"]["keypoints"]) == POSETRACK.keypoints
    words = ["--device", "cpu", "--workers", "0", "--least-box", "0", "--least-keypoint", "0"]
    outputs = ["--results", str(tmp_path / "found"), "--report", str(tmp_path / "a.json")]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run" / "last.safetensors"), *words, *outputs]) == 0
    said = capsys.readouterr()
    assert "least_box: 0.0, where the checkpoint's run had 0.4" in said.err
    assert [line.split()[0] for line in said.out.splitlines()[2:7]] == ["mAP", "MOTA", "MOTP", "precision", "recall"]
    files = ["--score-only", str(tmp_path / "found"), "--report", str(tmp_path / "b.json")]
    labels = ["--dataset", "posetrack", "--annotations", str(videos["annotations"])]
    assert main(["eval", *files, *labels]) == 0
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["columns"] == second["columns"]
    _without_labels(tmp_path, videos, words, capsys)


def _without_labels(folder: Path, videos: dict[str, object], words: list[str], capsys) -> None:
    """A split without labels: results are written and nothing is scored."""
    (folder / "test").mkdir()
    for file in sorted(Path(str(videos["annotations"])).glob("*.json")):
        content = {k: v for k, v in json.loads(file.read_text()).items() if k != "annotations"}
        (folder / "test" / file.name).write_text(json.dumps(content))
    data = ["--dataset", "posetrack", "--images", str(videos["images"]), "--annotations", str(folder / "test")]
    capsys.readouterr()
    run, found = str(folder / "run" / "last.safetensors"), folder / "unscored"
    assert main(["eval", run, *words, *data, "--results", str(found)]) == 0
    assert "no labels: results written, not scored" in capsys.readouterr().out
    for file in sorted(found.iterdir()):
        content = json.loads(file.read_text())
        assert len(content["images"]) == 2
        assert all(person["track_id"] >= 0 for person in content["annotations"])
    assert [file.name for file in sorted(found.iterdir())] == [f"00000{i}_synthetic_train.json" for i in (1, 2)]


def test_the_teacher_of_posetrack(tmp_path, videos, capsys):
    """A top-down network on labelled boxes, with the same metric."""
    assert main(["train", tiny("posetrack_teacher", tmp_path, videos, None)]) == 0
    assert "mAP" in [r for r in records(tmp_path) if r["kind"] == "validation"][-1]
    words = ["--device", "cpu", "--workers", "0", "--flow", "dis", "--propagate", "1", "--compat"]
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run" / "last.safetensors"), *words]) == 0
    assert "compat: True, where the checkpoint's run had False" in capsys.readouterr().err
    found = [{"image_id": i, "category_id": 1, "bbox": [9, 9, 30, 40], "score": 0.7} for i in (10_000, 10_001, 20_000)]
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    words = ["--device", "cpu", "--workers", "0", "--detections", str(tmp_path / "boxes.json")]
    outputs = ["--least-keypoint", "0", "--results", str(tmp_path / "found")]
    assert main(["eval", str(tmp_path / "run" / "last.safetensors"), *words, *outputs]) == 0
    assert "3 crops in" in capsys.readouterr().out
    people = json.loads((tmp_path / "found" / "000001_synthetic_train.json").read_text())["annotations"]
    assert [p["image_id"] for p in people] == [10_000, 10_001]
    assert people[0]["track_id"] == 0


def test_mpii_groups_by_the_ordinary_commands(tmp_path, capsys):
    pytest.importorskip("scipy")
    from helpers.pck_folders import picture, rect, release

    images = [(f"{i}.png", True, [rect(2 * i), rect(2 * i + 1)], [1]) for i in range(4)]
    for name, *_ in images:
        picture(tmp_path / "images" / name)
    data = {"images": str(tmp_path / "images"), "annotations": release(tmp_path / "r.mat", images), "split": "train"}
    save_weights(create_model("hrnet_w32", 16, **TINY_NET), tmp_path / "teacher.safetensors")
    recipe = tiny("w18_mpii_groups_512", tmp_path, data, (str(tmp_path / "teacher.safetensors"), [64, 64]))
    assert main(["train", recipe]) == 0
    assert {"mAP", "precision", "recall"} <= [r for r in records(tmp_path) if r["kind"] == "validation"][-1].keys()
    capsys.readouterr()
    words = ["--device", "cpu", "--workers", "0", "--results", str(tmp_path / "found.json")]
    assert main(["eval", str(tmp_path / "run" / "last.safetensors"), *words]) == 0
    assert "Head" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found.json").read_text())) == 4


def test_options_that_have_no_meaning_here(tmp_path, videos, capsys):
    assert main(["train", tiny("posetrack_teacher", tmp_path, videos, None), "--train.epochs", "1"]) == 0
    run = str(tmp_path / "run" / "last.safetensors")
    coco = ["--dataset", "coco", "--images", "x", "--annotations", "y"]
    assert main(["eval", run, *coco]) == 2
    capsys.readouterr()
    from posekd.data.synthetic import SyntheticSettings, write_coco

    still = write_coco(tmp_path / "coco", 2, settings=SyntheticSettings(size=(64, 64), people=(1, 1)))
    words = ["--dataset", "coco", "--images", still.images, "--annotations", still.annotations, "--flow", "dis"]
    assert main(["eval", "hrnet_w32", "--weights", run, *words]) == 2
    assert "--flow: nobody is followed over images that are no videos" in capsys.readouterr().err
