"""SIMPLE's recipes, and both stages by the ordinary commands."""

from __future__ import annotations

import json

import pytest
from helpers.tiny_recipe import TINY_NET

from posekd.cli import main
from posekd.data.loading.whole_images import ImageAugmentation
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.distill import AssociativeEmbeddingSettings, SimpleSettings
from posekd.engine.build import build_job
from posekd.engine.recipes.recipe import read_recipe, recipe_from_dict, recipe_to_dict
from posekd.engine.recipes.tables import read_tables
from posekd.engine.train import train
from posekd.models import create_model, save_weights
from posekd.paradigms import SingleNetworkInference

TINY = {
    "size": [64, 64], "width": 8, "modules": [1, 1], "blocks": 1, "stem_width": 8, "stage1_width": 4,
    "stage1_blocks": 1, "head_dim": 8, "head_mid": 4, "grouping_widths": [4, 8],
}  # fmt: skip
TRUNK = ("size", "width", "modules", "blocks", "stem_width", "stage1_width", "stage1_blocks")
TEACHER = {**TINY_NET, "size": [64, 48]}


@pytest.mark.parametrize(("width", "rate", "batch"), [(18, 2.5e-4, 48), (32, 2e-4, 32)])
def test_the_papers_recipes(width, rate, batch):
    """Section 6: the learning rates and batches, a step at 120 of 200 epochs, mimicking from epoch 151."""
    recipe = read_recipe(f"simple/w{width}_coco_512")
    assert recipe.student.name == f"simple_w{width}"
    assert recipe.method == SimpleSettings(mimic="both", mimic_from=151, alpha=1, beta=1)
    assert (recipe.optim.lr, recipe.loader.batch_size) == (rate, batch)
    assert (recipe.train.epochs, recipe.schedule.milestones, recipe.schedule.gamma) == (200, (120,), 0.1)
    assert recipe.augmentation == ImageAugmentation()
    assert recipe.inference == SingleNetworkInference()
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


def test_table_2():
    """Tags and bottom-up inference; anchors; points: three ways to tell people apart, none of which mimics."""
    tags, anchors, points = (row.resolve() for row in read_tables("simple") if row.table == "2")
    assert (tags.student.name, tags.paradigm.name, tags.teacher) == ("simple_w32_tags", "bottom_up", None)
    assert tags.method == AssociativeEmbeddingSettings(kind="exact")
    assert anchors.student.overrides == {"detection": "anchors"}
    assert anchors.method.mimic == points.method.mimic == "none"
    assert [row.published["AP"] for row in read_tables("simple") if row.table == "2"] == [63.4, 64.5, 67.1]


@pytest.mark.parametrize(
    ("student", "method", "terms"),
    [
        ({"name": "simple_w18_tags"}, {"name": "associative_embedding"}, {"labels", "pull", "push"}),
        (
            {"name": "simple_w18", "detection": "anchors"},
            {"name": "simple", "mimic": "none"},
            {"pose", "anchors", "anchor_boxes", "grouping"},
        ),
    ],
    ids=["tags", "anchors"],
)
def test_what_table_2_compares_trains_and_is_scored(student, method, terms, tmp_path):
    name, trunk = student.pop("name"), {key: TINY[key] for key in TRUNK}
    heads = {} if name.endswith("_tags") else {key: TINY[key] for key in ("head_dim", "grouping_widths")}
    recipe = recipe_from_dict(
        {
            "student": {"name": name, "overrides": {**trunk, **heads, **student}},
            "method": method,
            "train_data": {"name": "synthetic", "images": 4, "size": [64, 96]},
            "val_data": {"name": "synthetic", "images": 2, "size": [64, 96], "split": "val"},
            "loader": {"batch_size": 2, "workers": 0},
            "train": {"epochs": 1, "validate_every": 1, "device": "cpu", "log_every": 1},
            "out": str(tmp_path),
        }
    )
    scores = train(recipe)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    assert terms <= set(trained[-1])
    assert "AP" in scores
    assert ("box AP" in scores) == ("anchors" in terms)


def test_table_3():
    rows = {row.row: row.resolve().method.mimic for row in read_tables("simple") if row.table == "3"}
    assert list(rows.values()) == ["none", "labels", "features", "teacher", "both"]


def test_both_stages_by_the_ordinary_commands(tmp_path, capsys):
    """Train with a teacher that is asked from the second epoch on, resume, evaluate: both metrics from one run."""
    folder = write_coco(tmp_path, 6, settings=SyntheticSettings(size=(64, 96), people=(1, 2)))
    data = {"name": "coco", "images": folder.images, "annotations": folder.annotations}
    weights = tmp_path / "teacher.safetensors"
    save_weights(create_model("hrnet_w32", **TEACHER), weights)
    recipe = tmp_path / "recipe.yaml"
    content = {
        "student": {"name": "simple_w18", "overrides": TINY},
        "teacher": {"name": "hrnet_w32", "overrides": TEACHER, "weights": str(weights)},
        "method": {"name": "simple", "mimic_from": 2},
        "train_data": data,
        "val_data": data,
        "acknowledged": ["shared_images"],
        "loader": {"batch_size": 3, "workers": 0},
        "train": {"epochs": 2, "validate_every": 2, "device": "cpu", "log_every": 1},
        "out": str(tmp_path / "run"),
    }
    recipe.write_text(json.dumps(content))
    assert main(["train", str(recipe)]) == 0
    assert main(["train", str(recipe), "--train.epochs", "3", "--resume", "auto"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    first, second = ([r for r in trained if r["epoch"] == epoch][-1] for epoch in (0, 2))
    assert {"pose", "points", "offsets", "grouping"} <= set(first)
    assert set(second) - set(first) == {"mimic_teacher", "mimic_labels"}
    scores = [record for record in records if record["kind"] == "validation"][-1]
    assert {"AP", "box AP"} <= set(scores)
    capsys.readouterr()
    results = tmp_path / "scores.json"
    words = ["--device", "cpu", "--workers", "0", "--scales", "0.5", "1", "--letterbox", "--report", str(results)]
    assert main(["eval", str(tmp_path / "run" / "last.safetensors"), *words]) == 0
    said = capsys.readouterr()
    assert "boxes: " in said.out
    assert "letterbox: True, where the checkpoint's run had False" in said.err
    assert {"AP", "coco_boxes"} <= set(json.loads(results.read_text()))


def test_what_does_not_fit_is_refused():
    people = {"name": "synthetic", "images": 2, "size": [64, 96]}
    values = {
        "student": {"name": "simple_w18", "overrides": TINY},
        "method": {"name": "simple"},
        "train_data": people,
        "train": {"device": "cpu", "validate_every": 0},
    }
    with pytest.raises(ValueError, match="learns from a top-down teacher, and none was given"):
        build_job(recipe_from_dict(values))
    with pytest.raises(ValueError, match=r"single-network network that gives people.*choose method.name among simple"):
        build_job(recipe_from_dict({**values, "method": {"name": "supervised"}}))
