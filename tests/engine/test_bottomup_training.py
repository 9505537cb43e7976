"""Bottom-up recipes: what they resolve to, what they refuse, and a run by the ordinary commands."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.tiny_recipe import TINY_BOTTOM_UP

from posekd.cli import main
from posekd.data import CropAugmentation
from posekd.data.loading.whole_images import ImageAugmentation
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.distill import AssociativeEmbeddingSettings, SmallerHRNetSettings, SupervisedSettings
from posekd.engine.build import build_job
from posekd.engine.recipes.recipe import ModelSettings, Recipe, read_recipe, recipe_from_dict, recipe_to_dict
from posekd.engine.recipes.tables import read_tables
from posekd.models import create_model, profile_model, save_weights
from posekd.paradigms import BottomUpInference, TopDownInference

TABLES = read_tables("smallerhrnet")
STUDENTS = ("1_5m", "2_3m", "2_84m", "2_96m")


def values(**changes) -> dict:
    people = {"name": "synthetic", "images": 6, "size": [64, 96], "people": [1, 2]}
    base = {
        "student": {"name": "higherhrnet_w32", "overrides": TINY_BOTTOM_UP},
        "method": {"name": "associative_embedding"},
        "train_data": people,
        "val_data": {**people, "split": "val", "images": 3},
        "loader": {"batch_size": 3, "workers": 0},
        "train": {"epochs": 2, "validate_every": 2, "device": "cpu"},
    }
    return {**base, **changes}


@pytest.mark.parametrize("student", STUDENTS)
def test_the_papers_recipe(student):
    """SmallerHRNet, Section 4: Adam 1e-3, batch 16, 100 epochs with steps at 60 and 90, HigherHRNet's augmentation."""
    recipe = read_recipe(f"smallerhrnet/smallerhrnet_{student}_coco_512")
    assert recipe.student.name == f"smallerhrnet_{student}"
    assert recipe.teacher.name == "higherhrnet_w32"
    assert recipe.method == SmallerHRNetSettings(alpha=0.9)
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("adam", 1e-3, 0)
    assert (recipe.loader.batch_size, recipe.train.epochs, recipe.schedule.milestones) == (16, 100, (60, 90))
    assert recipe.augmentation == ImageAugmentation(flip=0.5, rotation=30, scale=(0.75, 1.5), translation=40)
    assert recipe.inference == BottomUpInference()


def test_higherhrnets_recipe():
    recipe = read_recipe("smallerhrnet/higherhrnet_w32_coco_512")
    assert recipe.method == AssociativeEmbeddingSettings(sigma=2.0, pull=1e-3, push=1e-3, push_form="exp")
    assert (recipe.loader.batch_size, recipe.train.epochs, recipe.schedule.milestones) == (48, 300, (200, 260))
    assert recipe.augmentation == ImageAugmentation()


@pytest.mark.parametrize("row", TABLES, ids=lambda row: f"{row.table} {row.row}")
def test_every_row_of_the_tables_is_a_recipe(row):
    recipe = row.resolve()
    with torch.device("meta"):
        model = create_model(recipe.student.name)
    if "parameters" in row.published:
        profile = profile_model(model)
        assert profile.params / 1e6 == pytest.approx(row.published["parameters"], abs=0.03)
        assert profile.out_x_w0 / 1e9 == pytest.approx(row.published["out_x_w0"], rel=6e-4)


def test_the_tables_change_what_the_paper_changes():
    tags = {row.row: row.resolve() for row in TABLES if row.table == "2"}
    assert tags["student alone"].method == AssociativeEmbeddingSettings()
    assert tags["heatmaps"].method == SmallerHRNetSettings(distil_tags=False)
    assert tags["heatmaps and tags"].method == SmallerHRNetSettings()
    authors = SmallerHRNetSettings(tag_reduction="authors", teacher_mode="train", sigma=None)
    assert tags["heatmaps and tags, authors"].method == authors
    epochs = [row.resolve() for row in TABLES if row.table == "epochs"]
    assert [(r.train.epochs, r.schedule.milestones) for r in epochs] == [(100, (60, 90))] + [(300, (200, 260))] * 2
    assert [row.resolve().method.alpha for row in TABLES if row.table == "alpha"] == [0.9, 0.5]


def test_settings_follow_from_the_student():
    """Which keys `augmentation` and `inference` have depends on whether the student sees crops or images."""
    recipe = recipe_from_dict(values(augmentation={"scale": [1, 2]}, inference={"scales": [0.5, 1]}))
    assert recipe.augmentation == ImageAugmentation(scale=(1, 2))
    assert recipe.inference == BottomUpInference(scales=(0.5, 1))
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    with pytest.raises(ValueError, match=r"unknown key 'inference\.decode'"):
        recipe_from_dict(values(inference={"decode": "dark"}))
    with pytest.raises(ValueError, match=r"unknown key 'augmentation\.translation'"):
        recipe_from_dict(values(student={"name": "hrnet_w32"}, augmentation={"translation": 3}))
    with pytest.raises(ValueError, match="needs augmentation of type ImageAugmentation, got CropAugmentation"):
        Recipe(ModelSettings("higherhrnet_w32"), AssociativeEmbeddingSettings(), None, SyntheticSettings())
    top_down = Recipe(ModelSettings("hrnet_w32"), SupervisedSettings(), SyntheticSettings(), SyntheticSettings())
    assert (type(top_down.augmentation), type(top_down.inference)) == (CropAugmentation, TopDownInference)


def test_paradigms_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match=r"higherhrnet_w32 is a bottom-up network.*embedding, smallerhrnet"):
        build_job(recipe_from_dict(values(method={"name": "supervised"})))
    top_down = {"name": "hrnet_w32", "overrides": {"size": [64, 64], "width": 8, "modules": [1, 1, 1], "blocks": 1}}
    with pytest.raises(ValueError, match=r"hrnet_w32 is a top-down network.*choose method.name among fpd"):
        build_job(recipe_from_dict(values(student=top_down)))
    path = tmp_path / "teacher.safetensors"
    save_weights(create_model("hrnet_w32", **top_down["overrides"]), path)
    teacher = {**top_down, "weights": str(path)}
    with pytest.raises(ValueError, match="hrnet_w32 is a top-down network"):
        build_job(recipe_from_dict(values(method={"name": "smallerhrnet"}, teacher=teacher)))
    with pytest.raises(ValueError, match="labels and unlabelled_data must be null"):
        recipe_from_dict(values(labels={"images": 2}))


def test_teacher_and_student_by_the_ordinary_commands(tmp_path, capsys):
    """Train a teacher, distil from it, resume, evaluate with flip and scales, write results."""
    folder = write_coco(tmp_path, 6, settings=SyntheticSettings(size=(64, 96), people=(1, 2)))
    data = {"name": "coco", "images": folder.images, "annotations": folder.annotations}
    both = {"train_data": data, "val_data": data, "acknowledged": ["shared_images"]}
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(json.dumps(values(**both, out=str(tmp_path / "teacher"))))
    assert main(["train", str(teacher)]) == 0
    student = tmp_path / "student.yaml"
    weights = str(tmp_path / "teacher" / "last.safetensors")
    content = values(
        **both,
        method={"name": "smallerhrnet"},
        teacher={"name": "higherhrnet_w32", "overrides": TINY_BOTTOM_UP, "weights": weights},
        out=str(tmp_path / "student"),
    )
    student.write_text(json.dumps(content))
    assert main(["train", str(student)]) == 0
    assert main(["train", str(student), "--train.epochs", "3", "--resume", "auto"]) == 0
    records = [json.loads(line) for line in (tmp_path / "student" / "log.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    assert {"labels", "teacher", "pull", "teacher_tags"} <= set(trained[-1])
    capsys.readouterr()
    words = ["--images", folder.images, "--annotations", folder.annotations, "--workers", "0", "--device", "cpu"]
    best = str(tmp_path / "student" / "last.safetensors")
    results = tmp_path / "results.json"
    assert main(["eval", best, *words, "--scales", "0.5", "1", "--no-refine", "--results", str(results)]) == 0
    assert "6 images in" in capsys.readouterr().out
    assert isinstance(json.loads(results.read_text()), list)
    assert main(["eval", best, *words, "--decode", "dark"]) == 2
    assert "--decode has no meaning for a bottom-up network" in capsys.readouterr().err
    assert main(["eval", best, *words, "--detections", str(results)]) == 2
    assert "sees whole images and needs none" in capsys.readouterr().err
