"""Threads of a run: set for its time, noted in its log, and told where the machine lacks cores for them."""

from __future__ import annotations

import os

import pytest
import torch
from helpers.tiny_recipe import tiny_recipe

from posekd.engine import threads
from posekd.engine.progress import read_log
from posekd.engine.train import train
from posekd.engine.training.settings import LoopSettings

PEOPLE = {"name": "synthetic", "images": 4, "size": [64, 64]}


@pytest.mark.parametrize(
    ("asked", "cores", "load", "told"),
    [
        (2, 2, 0.3, ""),
        (1, 2, 1.2, ""),
        (2, 2, 1.2, "others keep 1.2 of the 2 cores busy: threads that wait"),
        (2, 2, 1.2, "; 1 (--train.threads 1) may be much faster"),
        (8, 4, 0.1, "this process uses 8 threads, and there are 4 cores"),
        (1, 1, 3.0, "this process uses 1 thread, and others keep 3.0 of the 1 cores busy"),
    ],
)
def test_a_machine_without_enough_cores_is_told_of(monkeypatch, asked, cores, load, told):
    monkeypatch.setattr(threads, "cores", lambda: float(cores))
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    said = threads.oversubscribed(asked)
    assert told in said
    assert bool(said) == bool(told)


def test_a_container_may_have_less_than_its_machine(monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(threads, "Path", lambda _: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.cores() == 8  # there is no such file
    for text, cores in (("150000 100000", 1.5), ("max 100000", 8), ("1600000 100000", 8)):
        quota.write_text(text)
        assert threads.cores() == cores


@pytest.mark.usefixtures("quick")
def test_a_run_has_its_threads_and_gives_them_back(tmp_path):
    before = torch.get_num_threads()
    recipe = tiny_recipe(
        tmp_path / "run", train_data=PEOPLE, train__threads=before + 1, train__validate_every=0, train__epochs=1
    )
    train(recipe)
    assert torch.get_num_threads() == before
    start = read_log(tmp_path / "run" / "log.jsonl")[0]
    assert (start["kind"], start["threads"]) == ("start", before + 1)


def test_no_threads_are_refused():
    with pytest.raises(ValueError, match=r"train.threads must be 1 or more, or null; got 0"):
        LoopSettings(threads=0)
