"""`posekd train --seeds`: a run for each seed, resumable, and a table of mean, spread and interval."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from helpers.threads import threads
from helpers.tiny_recipe import tiny_recipe

from posekd.cli import main
from posekd.engine import seeds as module
from posekd.engine.recipes.recipe import recipe_to_dict
from posekd.viz.judging import student_t, summary

PEOPLE = {"name": "synthetic", "images": 4, "size": [64, 64]}


@pytest.fixture
def recipe(tmp_path):
    values = tiny_recipe(
        tmp_path / "out", train_data=PEOPLE, val_data={**PEOPLE, "split": "val"}, train__validate_every=2
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_to_dict(values)))
    return str(tmp_path / "mine.yaml")


def test_each_seed_is_a_run_and_is_done_once(recipe, tmp_path, capsys, monkeypatch):
    with threads(1):
        assert main(["train", recipe, "--seeds", "0", "2", "--train.epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "after the last step of 2 seeds" in out
    assert "95 % of mean" in out
    scores = json.loads((tmp_path / "out" / "seeds.json").read_text())
    assert list(scores) == ["0", "2"]
    for seed in (0, 2):
        card = json.loads((tmp_path / "out" / f"seed{seed}" / "last.json").read_text())
        assert card["recipe"]["seed"] == seed
        assert card["metrics"] == scores[str(seed)]
    written = (tmp_path / "out" / "seed2" / "log.jsonl").read_text()
    with threads(1):
        assert main(["train", recipe, "--seeds", "0", "2", "--train.epochs", "2"]) == 0
    assert (tmp_path / "out" / "seed2" / "log.jsonl").read_text().count("train") == written.count("train")
    assert json.loads((tmp_path / "out" / "seeds.json").read_text()) == scores


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1", "1"], "--seeds are different numbers from 0 on, got [1, 1]"),
        (["--seeds", "0", "--resume", "auto"], "give no --resume with it"),
        (["--seeds", "0", "--train.validate_every", "0"], "needs val_data and train.validate_every above 0"),
    ],
)
def test_mistakes(recipe, capsys, words, message):
    assert main(["train", recipe, *words]) == 2
    assert message in capsys.readouterr().err


def test_mean_spread_and_interval_by_hand():
    """0.4, 0.5, 0.6: standard deviation 0.1; Student's t for two degrees of freedom is 4.303 (any table)."""
    mean, spread, half = summary([0.4, 0.5, 0.6])
    assert (mean, spread) == pytest.approx((0.5, 0.1))
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert math.isnan(summary([0.4])[1])
    assert student_t(20) == pytest.approx(2.086, abs=0.001)  # the same table
    assert student_t(11) == pytest.approx(2.201, abs=0.003)


def test_the_results_file_is_checked_first(recipe, tmp_path, monkeypatch):
    (tmp_path / "out").write_text("a file")
    monkeypatch.setattr(module, "train", lambda *_, **__: pytest.fail("trained before the folder was looked at"))
    assert main(["train", recipe, "--seeds", "0"]) == 2
