"""benchmarks/experiments/lsp_fpd.py on a small folder in LSP's format: five trainings, resumed, one table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.pck_folders import lsp_folder

from posekd.data import open_lsp
from posekd.engine.recipes.configs import find_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN, TEST = [*range(1, 11)], [*range(1001, 1007)]


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("lsp_fpd", ROOT / "benchmarks" / "experiments" / "lsp_fpd.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(name: str, folder: Path) -> str:
    """A shipped recipe with a tiny network and two steps an epoch."""
    values = yaml.safe_load(find_config(name).read_text())
    for role in ("student", "teacher"):
        if role in values:
            values[role]["overrides"] = {"stages": 1, "width": 8, "stem": "fpd", "size": [64, 64]}
    values["train"] |= {"epochs": 1, "validate_every": 1}
    values["loader"]["batch_size"] = 2
    values["train_data"]["image_ids"], values["val_data"]["image_ids"] = TRAIN, TEST
    values["acknowledged"] = ["shared_images"]  # the drawn pictures are all alike
    path = folder / f"{Path(name).name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_every_arm_takes_as_many_steps_and_starts_from_the_same_student(program):
    data, out = Path("lsp"), Path("out")
    recipes = {arm: program.recipe_of(arm, 3, data, out) for arm in program.ARMS}
    pictures = {arm: 200 if arm == "student_200" else 1000 for arm in recipes}
    steps = {arm: pictures[arm] // r.loader.batch_size * r.train.epochs for arm, r in recipes.items()}
    assert len(set(steps.values())) == 1
    students = [recipe for arm, recipe in recipes.items() if arm != "teacher"]
    assert all(recipe.student == students[0].student and recipe.seed == 3 for recipe in students)
    assert {r.teacher.weights for r in students} == {str(out / "seed3" / "teacher" / "last.safetensors")}
    assert recipes["student_200"].labels.seed == recipes["fpd_200_800"].labels.seed == 3
    assert recipes["student_200"].labels.images == recipes["fpd_200_800"].labels.images == 200


def test_the_mean_pose_of_one_person_is_that_person(program, tmp_path):
    settings, _ = lsp_folder(tmp_path, range(1, 2), image_ids=[1])
    one = open_lsp(settings)
    assert program.mean_pose(one, one, (128, 128), 1.25).mean == 100


def test_the_whole_program_runs_resumes_and_reports(program, tmp_path, monkeypatch, capsys):
    (tmp_path / "lsp").mkdir()
    lsp_folder(tmp_path / "lsp", [*TRAIN, *TEST])
    recipes = {name: tiny(name, tmp_path) for name in (program.TEACHER, program.STUDENT)}
    arms = {
        arm: (recipes[name], [word.replace("200", "2") for word in words])
        for arm, (name, words) in program.ARMS.items()
    }
    monkeypatch.setattr(program, "ARMS", arms)
    monkeypatch.setattr(program, "TRAINING_PICTURES", len(TRAIN))
    threads = torch.get_num_threads()
    words = ["--data", str(tmp_path / "lsp"), "--out", str(tmp_path / "out"), "--threads", "1"]
    try:
        assert program.main(words) == 0
        first = json.loads((tmp_path / "out" / "results.json").read_text())
        assert program.main(words) == 0  # everything is done: nothing is trained again
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["seeds"] == first["seeds"]
    result = first["seeds"]["0"]
    assert set(result) == set(program.ARMS)
    assert {run["steps"] for run in result.values()} == {5}
    assert all(run["people"] == len(TEST) and 0 <= run["PCK@0.2"] <= 100 for run in result.values())
    assert np.isfinite(first["mean_pose"]["PCK@0.2"])
    assert (tmp_path / "out" / "pck.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "mean pose" in shown
    assert "unlabelled images: fpd_200_800 - student_200" in shown
