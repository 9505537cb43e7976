"""Run by test_kill.py as a program of its own: a tiny run, uninterrupted and killed again and again.

Everything is imported once; each run is a forked child. A child kills itself with SIGKILL when it has made its
N-th call of a function (so N random draws are N random moments, whatever the machine is doing), or when a
checkpoint is half written. Prints what happened as JSON.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.coco_folder import labels, person, write
from helpers.tiny_recipe import tiny_recipe
from posekd.engine.progress import read_log
from posekd.engine.recipes.recipe import Recipe
from posekd.engine.train import train
from posekd.engine.training import checkpoint, loop


def recipe(folder: Path, workers: int) -> Recipe:
    """Eight persons on eight images, beside the run's folder; two epochs of four steps."""
    data = folder.parent / "data"
    if not data.is_dir():
        data.mkdir()
        write(data, labels([person(10 * i, i) for i in range(1, 9)], range(1, 9)))
    people = {"name": "coco", "images": str(data / "images"), "annotations": str(data / "labels.json")}
    return tiny_recipe(
        folder,
        train_data=people,
        val_data=people,
        acknowledged=["shared_images"],
        loader__workers=workers,
        train__validate_every=1,
        train__ema_decay=0.9,
        train__checkpoint_steps=2,
    )


def in_child(work: Callable[[], None]) -> int:
    """Exit code of `work` in a forked process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(120, exit=True)  # a child that hangs says where
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, workers: int, calls: int | None = None, count_to: Path | None = None) -> None:
    """Trains; dies at the given number of calls, or writes how many there were."""
    main, made = os.getpid(), 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal made
        if event in ("call", "c_call") and os.getpid() == main:  # a loader's worker inherits this function
            made += 1
            if made == calls:
                die()

    settings = recipe(folder, workers)
    sys.setprofile(count)
    train(settings, resume="auto")
    sys.setprofile(None)
    if count_to is not None:
        count_to.write_text(str(made))


def run_until_half_a_checkpoint(folder: Path, workers: int, number: int) -> None:
    """Trains; dies when half of the `number`-th checkpoint is written."""
    whole, written = checkpoint.save_file, 0

    def save(tensors: object, path: Path, metadata: object) -> None:
        nonlocal written
        written += 1
        whole(tensors, path, metadata)
        if written == number:
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = save
    train(recipe(folder, workers), resume="auto")


def outcome(folder: Path) -> dict[str, object]:
    """What must be equal: losses and rates by step, validations, and every byte of the weights."""
    log = read_log(folder / "log.jsonl")
    losses = [[r["step"], r["lr"], r["loss"]] for r in log if r["kind"] == "train"]
    scores = [[r["step"], r["AP"]] for r in log if r["kind"] == "validation"]
    states = [checkpoint.load_latest(folder / "checkpoints")[1]["method"]]
    states += [load_file(folder / f"{name}.safetensors") for name in ("last", "best")]
    weights = [{k: hashlib.sha256(t.numpy().tobytes()).hexdigest() for k, t in state.items()} for state in states]
    return {"losses": losses, "scores": scores, "weights": weights}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    loop.plot_curves = lambda runs, path: None
    train(recipe(folder / "warm", 0))  # what is imported on first use is imported now: it would take all the kills
    rng = random.Random(0)
    result: dict[str, object] = {}
    killed, kinds = 0, {"call": 0, "half": 0}
    began = []  # whether a killed child had taken a step
    chains = []
    for workers, kills in ((0, 13), (2, 7)):
        whole = folder / f"whole{workers}"
        assert in_child(lambda: run(whole, workers, count_to=folder / "calls")) == 0  # noqa: B023
        calls = int((folder / "calls").read_text())
        result[f"whole{workers}"] = outcome(whole)
        chain, done = 0, 0
        while done < kills:
            parts = folder / f"parts{workers}_{chain}"
            if done % 4 == 3:
                number = rng.randint(1, 2)
                code, kind = in_child(lambda: run_until_half_a_checkpoint(parts, workers, number)), "half"  # noqa: B023
            else:
                after = rng.randint(1, int(calls * 0.6))
                code, kind = in_child(lambda: run(parts, workers, after)), "call"  # noqa: B023
            if code == -signal.SIGKILL:
                done += 1
                kinds[kind] += 1
                began.append((parts / "log.jsonl").is_file() and '"train"' in (parts / "log.jsonl").read_text())
                left = in_child(lambda: run(parts, workers)) if done == kills else None  # noqa: B023
                assert left in (None, 0), left
            else:
                assert code == 0, code
            if code == 0 or done == kills:  # this run has reached its end
                chains.append([workers, outcome(parts)])
                chain += 1
        killed += done
    print(json.dumps({**result, "killed": killed, "kinds": kinds, "began": sum(began), "chains": chains}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
