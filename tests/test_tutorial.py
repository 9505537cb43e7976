"""docs/own_keypoints.md is run as it stands: every command, in its order, on the data that it names, and nothing else.

The training runs are cut to a few epochs on the command line; the figures in the text come from whole ones.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import pytest
from helpers.threads import threads

from posekd.cli import main
from posekd.engine.progress import read_log

PAGE = Path(__file__).parents[1] / "docs" / "own_keypoints.md"
SHORT = {"train": ["--train.epochs", "16", "--train.validate_every", "8", "--schedule.warmup_steps", "10"]}
"""What the test adds to a command."""


def commands() -> list[list[str]]:
    """The words of each command in the page's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
def test_eight_commands_are_enough():
    words = commands()
    assert len(words) <= 8
    assert all(command[0] == "posekd" for command in words)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
def test_the_commands_lead_from_labels_to_a_compared_student(real_data, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    name = "mirror-mouse-example"
    Path(name).symlink_to(real_data / "own-keypoints" / name)
    with threads(1):
        for _, *words in commands():
            assert main([*words, *SHORT.get(words[0], [])]) == 0, words
    out = capfd.readouterr().out
    assert "90 images, 90 people, 17 keypoints, 1396 labels" in out
    assert "17 of 17 OKS sigmas are guessed" in out
    assert cv2.imread("crops.png") is not None
    runs = Path("runs/mouse")
    assert sorted(path.name for path in runs.iterdir()) == ["alone", "student", "teacher"]
    for run in runs.iterdir():
        losses = [r["loss"] for r in read_log(run / "log.jsonl") if r["kind"] == "train"]
        assert losses[-1] < losses[0], run
    assert re.search(r"AP: 0\.\d+ -> 0\.\d+, [+-]0\.\d+ \(95 % interval over images", out)
