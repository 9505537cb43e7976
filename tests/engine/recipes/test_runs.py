"""One file for several runs: `runs` of a recipe, chosen by `--run`."""

import pytest
import yaml

from posekd.distill import MAPDSettings, SupervisedSettings
from posekd.engine.recipes.recipe import read_recipe

FILE = {
    "out": "runs/mine",
    "student": {"name": "elpn_v1", "overrides": {"width": 8}},
    "train_data": {"name": "synthetic", "images": 8},
    "train": {"validate_every": 0, "epochs": 5},
    "runs": {
        "teacher": {"student": {"name": "hrnet_w16", "overrides": {}}, "method": {"name": "supervised"}},
        "student": {
            "teacher": {"weights": "runs/mine/teacher/last.safetensors"},
            "method": {"name": "mapd"},
            "train": {"epochs": 7},
            "out": "elsewhere",
        },
    },
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(FILE, sort_keys=False))
    return str(path)


def test_a_run_goes_over_the_file_key_by_key(file):
    teacher, student = (read_recipe(file, ["--run", name]) for name in ("teacher", "student"))
    assert (teacher.student.name, teacher.student.overrides) == ("hrnet_w16", {})
    assert (type(teacher.method), type(student.method)) == (SupervisedSettings, MAPDSettings)
    assert (student.student.name, student.student.overrides) == ("elpn_v1", {"width": 8})
    assert (teacher.train.epochs, student.train.epochs, student.train.validate_every) == (5, 7, 0)
    assert (teacher.out, student.out) == ("runs/mine/teacher", "elsewhere")
    assert (student.teacher.name, student.teacher.weights) == ("", "runs/mine/teacher/last.safetensors")


def test_the_command_line_goes_over_both(file):
    recipe = read_recipe(file, ["--train.epochs", "9", "--run=student", "--out", "third"])
    assert (recipe.train.epochs, recipe.out) == (9, "third")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "mine.yaml: choose one of its runs with --run: teacher, student"),
        (["--run", "pupil"], "it has no run 'pupil': teacher, student"),
        (["--run"], "it has no run '': teacher, student"),
    ],
)
def test_a_run_must_be_chosen(file, words, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(file, words)


def test_a_file_without_runs_takes_none():
    with pytest.raises(ValueError, match="--run teacher: the recipe has no `runs`"):
        read_recipe("mapd/quickstart", ["--run", "teacher"])
