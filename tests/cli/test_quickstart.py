"""`posekd quickstart`, made tiny: what it compares, what it writes. (The full one is command 1 of the README.)"""

import json
from dataclasses import replace

import pytest

from posekd.cli import main
from posekd.cli.quickstart import quickstart, students
from posekd.data.sources.labels import LabelSettings
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import read_recipe
from posekd.metrics import NUMBERS
from posekd.models import load_model

TINY = ["--train_data.images", "40", "--val_data.images", "5", "--train.epochs", "2", "--loader.batch_size", "8"]
TINY += ["--train.log_every", "1"]


def test_the_students_recipe_names_the_teacher_that_the_other_recipe_trains():
    student, teacher = read_recipe("mapd/quickstart"), read_recipe("supervised/quickstart")
    assert (student.teacher.name, student.teacher.overrides) == (teacher.student.name, teacher.student.overrides)
    assert student.train_data == teacher.train_data
    assert student.val_data == teacher.val_data
    assert student.train_data.split != student.val_data.split


@pytest.mark.slow
def test_quickstart_trains_compares_and_writes(tmp_path, capsys):
    assert main(["quickstart", "--out", str(tmp_path), "--seed", "3", *TINY]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    for name in ("teacher", "distilled", "undistilled"):
        assert set(results[name]) == {*NUMBERS, "parameters", "seconds"}
        model = load_model(tmp_path / name / "last.safetensors")
        assert sum(p.numel() for p in model.parameters()) == results[name]["parameters"]
        last = [r for r in read_log(tmp_path / name / "log.jsonl") if r["kind"] == "validation"][-1]
        assert {key: last[key] for key in NUMBERS} == {key: results[name][key] for key in NUMBERS}
    assert results["teacher"]["parameters"] > results["distilled"]["parameters"]
    assert results["distilled"]["parameters"] == results["undistilled"]["parameters"]
    assert results["gain"] == results["distilled"]["AP"] - results["undistilled"]["AP"]
    assert results["seed"] == 3
    for picture in ("curves.png", "poses.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    change = "raised" if results["gain"] > 0 else "lowered" if results["gain"] < 0 else "left"
    assert f"without labels {change} the student's AP" in " ".join(out.split())

    # the teacher's images are others, and the students see theirs for as many steps, but for a part of an epoch
    assert read_recipe(str(tmp_path / "teacher" / "recipe.yaml")).train_data.seed == 1003
    steps = [read_log(tmp_path / name / "log.jsonl")[-1]["step"] for name in ("distilled", "undistilled")]
    assert steps[1] == pytest.approx(steps[0], rel=0.2)


def test_the_students_differ_in_the_teacher_and_the_pictures_without_labels():
    student, teacher = read_recipe("mapd/quickstart"), read_recipe("supervised/quickstart")
    distilled, undistilled = students(student, teacher, LabelSettings(100), everybody=2458, labelled=247)
    assert distilled.labels == LabelSettings(100, "unlabelled")
    assert undistilled.labels == LabelSettings(100, "left_out")
    assert distilled.method == replace(student.method, unlabelled_weight=1.0)
    assert undistilled.method == teacher.method
    assert undistilled.teacher is None
    # 76 and 7 whole batches an epoch: 8 and 87 epochs are 608 and 609 steps
    assert undistilled.train == replace(distilled.train, epochs=87, validate_every=22, checkpoint_every=87)
    same = {name: getattr(student, name) for name in ("labels", "method", "teacher", "train", "out")}
    assert replace(distilled, **same) == replace(undistilled, **same) == student


def test_a_quickstart_that_cannot_be_says_so_before_it_trains(tmp_path):
    for words, message in [
        (
            ["--train_data.images", "10"],
            "persons with labels, on one image in 10, do not fill a batch of 32",
        ),
        (["--labels.images", "5", "--labels.others", "left_out"], "the quickstart itself decides who has labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            quickstart(tmp_path, overrides=["--val_data.images", "2", *words])
        assert not list(tmp_path.iterdir())
