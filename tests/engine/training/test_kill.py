"""SIGKILL at random moments of a real run: what is resumed equals, bit for bit, what was never killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import killing

import posekd

TESTS = Path(killing.__file__).parents[1]
PATHS = os.pathsep.join(map(str, (Path(posekd.__file__).parents[1], TESTS)))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_at_twenty_random_points_equals_the_uninterrupted_one(tmp_path):
    """Thirteen kills with decoding in the process, seven with two workers, five of all in a half-written checkpoint."""
    # files, not pipes: a worker whose process was killed may hold a pipe open after everything is said
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        words = [sys.executable, killing.__file__, str(tmp_path)]
        env = {**os.environ, "PYTHONPATH": PATHS}
        done = subprocess.run(words, stdout=stdout, stderr=stderr, check=False, env=env, timeout=280)
    assert done.returncode == 0, err.read_text()[-3000:]
    result = json.loads(out.read_text().splitlines()[-1])
    assert result["killed"] == 20
    assert result["kinds"]["half"] >= 3
    assert result["began"] >= 12, "most of them after a first step"
    assert result["whole0"] == result["whole2"], "workers change nothing"
    assert len(result["chains"]) >= 2
    for workers, outcome in result["chains"]:
        whole = result[f"whole{workers}"]
        assert outcome["losses"] == whole["losses"]
        assert outcome["scores"] == whole["scores"]
        assert outcome["weights"] == whole["weights"]
