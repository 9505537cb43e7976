"""The prepared programs for a GPU, tried where there is none: order, limits, what they leave behind."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from posekd.cli import bench

SOURCES = Path(__file__).resolve().parents[2]  # the program may be an installed one, which has no tests
BENCHMARKS = next(iter(bench.benchmarks().values())).rsplit(".", 2)[0]
gpu_run = importlib.import_module(f"{BENCHMARKS}.gpu_run")
gpu_evidence = importlib.import_module(f"{BENCHMARKS}.experiments.gpu_evidence")


def piece(name, code, limit_s=20.0, **more):
    return gpu_run.Piece(name, ("-c", code), limit_s, "a test", **more)


@pytest.fixture
def few(monkeypatch):
    found = [
        piece("first", "print('measured 3')"),
        piece("slow", "import time; print('begun', flush=True); time.sleep(60)", 1.0),
        piece("wrong", "raise SystemExit(3)"),
        gpu_run.Piece("missing", ("no-such-sanitizer", "--tool"), 5, "a test", program=True),
        piece("last", "print('measured 4')"),
    ]
    monkeypatch.setattr(gpu_run, "pieces", lambda device, out: found)
    return found


def test_a_piece_that_fails_or_takes_too_long_stops_no_other(few, tmp_path, capsys):
    assert gpu_run.main(["--minutes", "1", "--device", "cpu", "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "gpu_run.json").read_text())
    ended = {name: row["ended"] for name, row in results.items()}
    assert ended == {
        "first": "done",
        "slow": "stopped after 1 s",
        "wrong": "failed with code 3: see wrong.log",
        "missing": "skipped: no-such-sanitizer cannot be started (No such file or directory)",
        "last": "done",
    }
    assert results["last"]["last"] == "measured 4"
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert "measured 3" in capsys.readouterr().out


def test_started_again_it_runs_what_has_not_ended_well(few, tmp_path):
    words = ["--device", "cpu", "--out", str(tmp_path)]
    gpu_run.main(["--minutes", "1", "--only", "first", "wrong", *words])
    (tmp_path / "first.log").write_text("kept")
    few[2] = piece("wrong", "print('right')")
    assert gpu_run.main(["--minutes", "1", "--only", "first", "wrong", *words]) == 0
    assert (tmp_path / "first.log").read_text() == "kept"


def test_without_time_a_piece_is_skipped_in_words(few, tmp_path):
    gpu_run.main(["--minutes", "0.001", "--device", "cpu", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "gpu_run.json").read_text())
    assert {row["ended"] for row in results.values()} == {"skipped: no time was left"}


def test_its_commands_are_there(tmp_path, capsys):
    assert gpu_run.main(["--minutes", "1", "--device", "cpu", "--list"]) == 0
    assert "bench_distill_loss" in capsys.readouterr().out
    names = {piece.name for piece in gpu_run.pieces("cuda", tmp_path)}
    assert {"step", "calls", "train_64_graph", "train_64", "cuda_tests", "memcheck", "bench_distill_loss_bf16"} < names
    wanted = {f"bench_{name}" for name in bench.benchmarks()} - {"bench_simulated_heatmap_loss"}
    assert wanted < names
    for piece in gpu_run.pieces("cuda", tmp_path):
        files = [word for word in piece.command if word.startswith("tests")]
        assert all((SOURCES / word).exists() for word in files)
    with pytest.raises(SystemExit):
        gpu_run.main(["--minutes", "1", "--device", "cpu", "--only", "nothing"])
    assert "there is no piece 'nothing'" in capsys.readouterr().err


def test_one_piece_runs_as_it_is(tmp_path):
    assert gpu_run.main(["--minutes", "2", "--device", "cpu", "--only", "doctor", "--out", str(tmp_path)]) == 0
    assert sys.version.split()[0] in (tmp_path / "doctor.log").read_text()


def test_the_schedule_follows_from_the_minutes_alone():
    half, hour = gpu_evidence.schedule_for(30, 3), gpu_evidence.schedule_for(60, 3)
    assert hour.images == pytest.approx(2 * half.images, abs=2)
    assert gpu_evidence.schedule_for(1, 3).images == 1000
    assert (half.epochs, half.batch) == (hour.epochs, hour.batch)


def test_no_training_begins_after_the_minutes(tmp_path, capsys):
    words = ["--tiny", "--device", "cpu", "--seeds", "0", "--out", str(tmp_path)]
    assert gpu_evidence.run(["--minutes", "0.0001", *words]) == 0
    assert capsys.readouterr().out.count("no time is left; start again to go on") == 5
    assert json.loads((tmp_path / "schedule.json").read_text())["images"] == 12


@pytest.mark.slow
def test_the_evidence_program_trains_compares_and_goes_on(tmp_path, capsys):
    words = ["--minutes", "10", "--tiny", "--device", "cpu", "--seeds", "0", "--out", str(tmp_path)]
    assert gpu_evidence.run(words) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["seeds"]["0"]) == {"teacher", "plain", "mapd", "mse", "kl"}
    assert set(results["comparisons"]) == set(gpu_evidence.COMPARISONS)
    assert results["schedule"]["epochs"] == 1
    before = (tmp_path / "seed0" / "kl" / "last.safetensors").stat().st_mtime_ns
    assert gpu_evidence.run(words) == 0
    assert (tmp_path / "seed0" / "kl" / "last.safetensors").stat().st_mtime_ns == before
    assert "does not count" in capsys.readouterr().out
