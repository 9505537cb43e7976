"""`posekd frontier`: a run for each combination, resumable; a table, a picture and who is on the frontier."""

from __future__ import annotations

import json
import math
import re

import pytest
import yaml
from helpers.threads import threads
from helpers.tiny_recipe import tiny_recipe
from PIL import Image

from posekd.cli import main
from posekd.cli.frontier import _default
from posekd.engine import frontier
from posekd.engine.frontier import Point, best_of
from posekd.engine.recipes.recipe import recipe_to_dict
from posekd.models.latency import Latency

PEOPLE = {"name": "synthetic", "images": 4, "size": [64, 64]}
WORDS = ["--vary", "width=4,8", "modules=[1]", "--threads", "1"]


@pytest.fixture
def recipe(tmp_path):
    values = tiny_recipe(
        tmp_path / "out", train_data=PEOPLE, val_data={**PEOPLE, "split": "val"}, train__validate_every=1,
        train__epochs=1,
    )  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe_to_dict(values)))
    return str(tmp_path / "mine.yaml")


def test_killed_and_started_again_it_goes_on(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(frontier, "SECONDS", 0.02)
    out, train, done = tmp_path / "out", frontier.train, []

    def killed_in_the_second(recipe, resume):
        if len(done) == 1:
            raise KeyboardInterrupt("stopped")
        done.append(recipe.out)
        return train(recipe, resume)

    with threads(1):
        monkeypatch.setattr(frontier, "train", killed_in_the_second)
        assert main(["frontier", recipe, *WORDS]) == 130
        first = (out / "width4_modules1" / "log.jsonl").read_text()
        monkeypatch.setattr(frontier, "train", train)
        capsys.readouterr()
        assert main(["frontier", recipe, *WORDS]) == 0
    again = (out / "width4_modules1" / "log.jsonl").read_text()
    assert again.count('"train"') == first.count('"train"')  # not a step was done again
    told = capsys.readouterr()
    assert "student 2 of 2, width=8 modules=1" in told.err
    assert "elpn_v1 on 1 CPU thread" in told.out
    assert len(re.findall(r"^width=\d modules=\S+ +\d+\.\d\d +\d", told.out, re.MULTILINE)) == 2
    found = json.loads((out / "frontier.json").read_text())
    assert found["measured_on"] == "1 CPU thread"
    rows = {row["name"]: row for row in found["students"]}
    assert list(rows) == sorted(rows, key=lambda name: rows[name]["latency"]["median"])
    assert rows["width=4 modules=1"]["params"] < rows["width=8 modules=1"]["params"]
    for name, row in rows.items():
        card = json.loads((out / name.replace(" ", "_").replace("=", "") / "last.json").read_text())
        assert row["score"] == card["metrics"]["AP"]
        assert row["score_name"] == "AP"
    assert Image.open(out / "frontier.png").size[0] > 500


def test_without_vary_half_the_width_and_twice_the_width_and_one_block(tmp_path):
    student = {"name": "elpn_v1", "overrides": {"width": 12, "blocks": 3}}
    recipe = tiny_recipe(tmp_path, student=student, train_data=PEOPLE, train__validate_every=0)
    assert _default(recipe) == {"width": [6, 12, 24], "blocks": [1, 3]}
    other = tiny_recipe(
        tmp_path, student={"name": "elpn_v1", "overrides": {"width": 1}}, train_data=PEOPLE, train__validate_every=0
    )
    with pytest.raises(ValueError, match="elpn_v1 has no width to vary: say what with --vary"):
        _default(other)


def point(name, score, milliseconds):
    return Point(name, "AP", score, 1, 1, Latency(1, milliseconds / 1e3, 0, 0, 0))


def test_the_frontier_holds_those_that_nobody_beats():
    points = [
        point("fast", 0.2, 1),
        point("slower and worse", 0.1, 2),
        point("slower and as good", 0.2, 2),
        point("better", 0.5, 3),
        point("none", math.nan, 0.5),
        point("best", 0.6, 9),
    ]
    assert best_of(points) == {"fast", "better", "best"}
    assert best_of([]) == set()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary", "width"], "--vary takes KEY=VALUE,VALUE..., e.g. width=8,16, got 'width'"),
        (["--vary", "width="], "got 'width='"),
        (["--vary", "width=[8"], "got 'width=[8'"),
        (["--vary", "width=8,8"], "width has a value twice: [8, 8]"),
        (["--vary", "width=8", "width=16"], "--vary names width twice"),
        (["--vary", "wdth=8,16"], "elpn_v1 has no setting 'wdth'; did you mean 'width'"),
        (["--vary", "width=8", "--train.validate_every", "0"], "needs val_data and train.validate_every above 0"),
        (["--vary", "width=8", "--threads", "0"], "--threads must be 1 or more, got 0"),
        (["--student.weights", "x.safetensors"], "fit one network only"),
    ],
)
def test_mistakes(recipe, tmp_path, capsys, words, message):
    assert main(["frontier", recipe, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
