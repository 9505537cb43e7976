"""`posekd bench calls`: every op with a derivative against a bare Function that makes the same calls of the core."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import pytest
import torch
from helpers.small_problems import NAMES

from posekd.cli import bench


@pytest.fixture
def calls() -> ModuleType:
    return importlib.import_module(bench.benchmarks()["distill_loss"].rsplit(".", 2)[0] + ".calls")


def test_has_a_row_for_every_op_with_a_derivative(
    calls: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    assert bench.main(["calls", "--rounds", "2", "--turns", "3"]) == 0
    found = re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +([\d.]+)  [\d.-]+ to [\d.-]+$", capsys.readouterr().out, re.M)
    assert [row[0] for row in found] == list(NAMES)
    assert all(float(number) > 0 for row in found for number in row[1:])


def test_both_give_the_same_gradients(calls: ModuleType) -> None:
    for name, (ours, base) in calls.contestants().items():
        calls._check_equal(name, ours(), base())
    with pytest.raises(RuntimeError, match="corner_pool: the bare Function's gradients differ"):
        calls._check_equal("corner_pool", (torch.zeros(2),), (torch.ones(2),))


def test_no_rounds_are_refused(calls: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        calls.main(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
