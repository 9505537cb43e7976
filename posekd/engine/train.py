"""`train(recipe)`: a run from its recipe, from the start or from where it stopped, in one process or under torchrun."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from posekd.engine import distributed
from posekd.engine.build import build_job, pick_device
from posekd.engine.hold_out import with_held_out
from posekd.engine.recipes.changes import compare
from posekd.engine.recipes.recipe import Recipe, recipe_to_dict, save_recipe
from posekd.engine.threads import oversubscribed, using_threads
from posekd.engine.training import checkpoint
from posekd.engine.training.loop import Job, fit, load_state_dict
from posekd.files import check_writable, write_atomically


def train(recipe: Recipe, resume: str | None = None) -> dict[str, float] | None:
    """Trains by a recipe. The run's folder then holds

        recipe.yaml          the resolved recipe
        log.jsonl            one record per `log_every` steps and per validation
        tensorboard/         the same as scalars
        curves.png           loss and main score (AP, PCKh@0.5, PCK@0.2)
        best.safetensors     the student of the best main score, and its card best.json
        last.safetensors     the student of the last step
        checkpoints/         the state of the last steps, to resume from

    Args:
        recipe: the recipe.
        resume: `auto` for the newest checkpoint of the run's folder (or from the start if there is none), or
            the path of one; `None` starts a new run.

    Returns:
        The scores of the last validation, if there was one.

    Raises:
        FileExistsError: a new run in a folder that already holds one.
        FileNotFoundError, ValueError: data, weights, checkpoint or settings that do not fit; or none of the run's
            checkpoints can be read.
        OSError: the folder cannot be written.
    """
    folder = Path(recipe.out)
    device = pick_device(recipe.train.device)
    with using_threads(recipe.train.threads), distributed.group(device):
        if device.type == "cpu" and distributed.is_main() and (told := oversubscribed(torch.get_num_threads())):
            print(f"posekd: note: {told}", file=sys.stderr)
        if distributed.is_main():
            check_writable(folder / "recipe.yaml")
        state = _state_to_resume(folder, resume)
        recipe = with_held_out(recipe)
        if state is not None:
            _check_changes(state["facts"]["recipe"], recipe_to_dict(recipe))
        job = build_job(recipe, label=recipe.student.name)
        if state is not None:
            resume_job(job, state)
        if distributed.is_main():
            save_recipe(recipe, folder / "recipe.yaml")
        return fit(job)


def train_timed(recipe: Recipe) -> float:
    """Trains, or resumes an interrupted run; for programs of several runs that report the time of each.

    Returns:
        Wall-clock seconds over all attempts, except those that were killed.
    """
    folder = Path(recipe.out)
    clock = folder / "seconds.json"
    before = json.loads(clock.read_text()) if clock.is_file() else 0.0
    start = time.perf_counter()
    try:
        train(recipe, resume="auto")
    finally:
        seconds = before + time.perf_counter() - start
        if folder.is_dir():
            write_atomically(clock, json.dumps(seconds))
    return seconds


def resume_job(job: Job, state: dict[str, Any]) -> None:
    """Restores a new job to the state of a checkpoint.

    Raises:
        ValueError: the checkpoint is of another student, or past the end of this recipe.
    """
    load_state_dict(job, state)
    step, before = job.learner.step, state.get("steps_per_epoch", job.steps_per_epoch)
    other = "" if before == job.steps_per_epoch else f"an epoch has {job.steps_per_epoch} steps, and had {before}"
    if step > job.total_steps:
        raise ValueError(
            f"the checkpoint is at step {step}, and this recipe ends at step {job.total_steps}"
            + (
                f": {other}; raise train.epochs, or go on with the batch size and data that it began with"
                if other
                else ""
            )
        )
    if other:
        warnings.warn(
            f"resuming: {other}, so step {step}, after {step / before:.4g} epochs, is now after "
            f"{step / job.steps_per_epoch:.4g} of {job.settings.epochs}",
            stacklevel=2,
        )


def _state_to_resume(folder: Path, resume: str | None) -> dict[str, Any] | None:
    checkpoints = folder / "checkpoints"
    if resume is None:
        if checkpoint.list_checkpoints(checkpoints):
            raise FileExistsError(
                f"{folder} already holds a run: go on with --resume auto, or choose another --out for a new one"
            )
        return None
    if resume != "auto":
        _refuse_folder(Path(resume), folder)
        return checkpoint.load_state(Path(resume))
    found = checkpoint.load_latest(checkpoints)
    if found is None and checkpoint.list_checkpoints(checkpoints):
        raise ValueError(
            f"{checkpoints} holds no checkpoint that can be read: give another with --resume PATH, or choose another "
            "--out for a new run"
        )
    return None if found is None else found[1]


def _refuse_folder(path: Path, folder: Path) -> None:
    """Refuses a folder where a checkpoint is wanted, with what was probably meant.

    Raises:
        ValueError: it is a folder.
    """
    if not path.is_dir():
        return
    found = checkpoint.list_checkpoints(path) or checkpoint.list_checkpoints(path / "checkpoints")
    if not found:
        hint = "and it holds no checkpoint"
    elif path.resolve() in (folder.resolve(), (folder / "checkpoints").resolve()):
        hint = "this run's: go on from its newest checkpoint with --resume auto"
    else:
        hint = f"another than this run's, {folder}: go on from its newest checkpoint with --resume {found[-1]}"
    raise ValueError(f"--resume {path} is a folder, {hint}")


def _check_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Compares the recipe of a resumed run with the one that it began with, and warns about each change.

    Raises:
        ValueError: a change with which the run cannot go on.
    """
    changes = compare(old, new)
    if changes.refused:
        raise ValueError(
            f"the run cannot go on under this recipe: {'; '.join(changes.refused)}. Go on with the old values, or "
            "begin a new run in another --out, from its weights (student.weights) if they fit"
        )
    for change in changes.taken:
        warnings.warn(f"resuming under a changed recipe: {change}", stacklevel=3)
