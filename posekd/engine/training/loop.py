"""The training loop: epochs, validation, checkpoints, resume. It knows methods only by `distill.base.Method`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from posekd.data import BadImageError
from posekd.engine import distributed
from posekd.engine.progress import RunLog, Ticker, read_log
from posekd.engine.training import checkpoint
from posekd.engine.training.optim import ScheduleSettings, rate_factor, set_rate
from posekd.engine.training.settings import LoopSettings
from posekd.engine.training.step import Batch, Learner, NonFiniteError, train_step
from posekd.engine.training.stopping import LoadingError, StopSignal
from posekd.models.identify import few
from posekd.viz.curves import plot_curves


class Loaded(Protocol):
    """What the loop needs to know of a loader's batch."""

    def __len__(self) -> int: ...


class Batches(Protocol):
    """What the loop needs from a loader: batch `i` of epoch `e` is a pure function of the seed, `e` and `i`."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from the `start`-th on, `len(self)` in a whole one."""


@dataclass
class Job:
    """What the loop works on.

    Attributes:
        learner: the state that training changes.
        loader: training batches, `accumulate` of them for each step.
        prepare: from a loader's batch to one for the method, on the device.
        validate: from a network to its scores, the main one (by which the best is kept) first; called with a network
            in eval mode.
        save_weights: writes a network and a card with the given facts to a path.
        folder: folder of the run.
        settings: see `LoopSettings`.
        schedule: learning rate over time.
        lr: peak learning rate.
        facts: values saved with every checkpoint (the recipe).
        label: for the progress display.
        seed: seed of the random numbers in a step (dropout).
        scale: maximum of the main score, for the curves: 1, or 100 for percent.
        count_labelled: counts the rows of a loader's batch that have labels; None if all have.
        best: the best main score of a validation so far.
        scores: scores of the last validation.
        validated: optimiser step of the last validation.
        stale: validations in a row that were no better than the best before.
    """

    learner: Learner
    loader: Batches
    prepare: Callable[[Any], Batch]
    validate: Callable[[nn.Module], dict[str, float]]
    save_weights: Callable[[nn.Module, Path, dict[str, Any]], None]
    folder: Path
    settings: LoopSettings
    schedule: ScheduleSettings
    lr: float
    facts: dict[str, Any]
    label: str = "train"
    seed: int = 0
    scale: float = 1.0
    count_labelled: Callable[[Any], int] | None = None
    best: float = float("-inf")
    scores: dict[str, float] | None = None
    validated: int = 0
    stale: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.loader) // self.settings.accumulate

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.settings.epochs

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"


def fit(job: Job) -> dict[str, float] | None:
    """Trains from `job.learner.step` to the end, in every process of a group; rank 0 writes the files.

    Returns:
        The scores of the last validation, if there was one.

    Raises:
        NonFiniteError: a loss term or a gradient is NaN or infinite.
        LoadingError: a batch cannot be loaded.
        OSError: a file of the run cannot be written.
        KeyboardInterrupt: after SIGINT or SIGTERM.
        ValueError: fewer batches than one step accumulates.
        The state is saved first if possible, and the message says where.
    """
    if job.steps_per_epoch < 1:
        raise ValueError(
            f"{len(job.loader)} batches per epoch are too few for train.accumulate {job.settings.accumulate}"
        )
    learner, settings = job.learner, job.settings
    log = RunLog(job.folder, learner.step, job.validated, quiet=not distributed.is_main())
    ticker = Ticker(job.label, job.total_steps, learner.step, quiet=not distributed.is_main())
    weights = learner.method.weights()
    ticker.say(f"{job.label}: loss = " + " + ".join(f"{weight:g} {term}" for term, weight in weights.items()))
    try:
        log.write("start", learner.step, weights=weights, threads=torch.get_num_threads())
        with StopSignal() as stop:
            while True:
                _validate_if_due(job, log, ticker)
                if learner.step == job.total_steps:
                    break
                if settings.patience is not None and job.stale >= settings.patience:
                    ticker.say(f"{job.label}: no better for {job.stale} validations: stopped (train.patience)")
                    log.write("stopped", learner.step, stale=job.stale)
                    break
                _train_epoch(job, log, ticker, stop)
        if not job.settings.validate_every and distributed.is_main():  # otherwise the last validation has drawn them
            plot_curves({job.label: read_log(log.path)}, job.folder / "curves.png")
        if distributed.is_main():
            job.save_weights(learner.eval_model, job.folder / "last.safetensors", {"metrics": job.scores})
    except NonFiniteError as error:
        error.args = (f"{error}. {_rescue(job, f'nonfinite_{error.step:09d}.safetensors')}",)
        raise
    except OSError as error:
        raise OSError(f"{error}. {_rescue(job)}") from error
    finally:
        ticker.close()
        log.close()
    return job.scores


def _train_epoch(job: Job, log: RunLog, ticker: Ticker, stop: StopSignal) -> None:
    """The rest of the epoch that the learner is in."""
    learner, settings = job.learner, job.settings
    epoch, done = divmod(learner.step, job.steps_per_epoch)
    learner.method.start_epoch(epoch)
    learner.method.train()
    batches = job.loader.epoch(epoch, done * settings.accumulate)
    for _ in range(done, job.steps_per_epoch):
        start = time.perf_counter()
        group = _pull(job, batches, stop)
        waited = time.perf_counter() - start
        lr = job.lr * rate_factor(job.schedule, learner.step, job.steps_per_epoch, job.total_steps)
        set_rate(learner.optimizer, lr)
        seed_step(job.seed, learner.step)
        take = learner.captured or train_step
        losses = take(learner, [job.prepare(batch) for batch in group])
        report = learner.step % settings.log_every == 0 or learner.step == job.total_steps
        samples = sum(map(len, group)) * distributed.world()
        facts = ticker.tick(samples, waited, losses["loss"], report=report)
        if report:
            log.write("train", learner.step, epoch=epoch, lr=lr, **losses, **facts, **_labelled(job, group))
        if learner.step % job.steps_per_epoch:  # the end of an epoch is saved after its validation
            _save_if_due(job)
    _stop_if_asked(job, stop)


def _labelled(job: Job, group: list[Loaded]) -> dict[str, int]:
    """For the log of a step: numbers of rows and of labelled rows over all processes; empty if all have labels."""
    if job.count_labelled is None:
        return {}
    own = sum(map(len, group)), sum(map(job.count_labelled, group))
    samples, labelled = map(sum, zip(*distributed.gather(own), strict=True))
    return {"samples": samples, "labelled": labelled}


def _pull(job: Job, batches: Iterator[Loaded], stop: StopSignal) -> list[Loaded]:
    """The batches of the next step, if every process has its own and none is to stop."""
    group: list[Loaded] = []
    failure: Exception | None = None
    try:
        if not stop.requested:  # a signal kills the loader's workers, too
            group = list(islice(batches, job.settings.accumulate))
            if len(group) < job.settings.accumulate:
                failure = LoadingError(f"the loader ended at step {job.learner.step}, before the epoch did")
    except (BadImageError, OSError, RuntimeError) as error:  # RuntimeError: a worker was killed
        failure = error
    stopping, failing = distributed.any_of(stop.requested, failure is not None)
    if stopping:
        _stop(job, stop)
    if failing:
        reasons = [reason for reason in distributed.gather(failure and _sentence(failure)) if reason is not None]
        raise LoadingError(f"{reasons[0]}. {_rescue(job)}") from failure
    return group


def _sentence(error: Exception) -> str:
    """An error's message, without the traceback of the worker that raised it."""
    return str(error).strip().rsplit("\n", 1)[-1].split("Error: ", 1)[-1].rstrip(".")


def seed_step(seed: int, step: int) -> None:
    """Makes torch's random numbers a function of seed, step and process, so that a resumed run has the same."""
    torch.manual_seed(
        int(np.random.SeedSequence([seed, step, distributed.rank()]).generate_state(1, np.uint64)[0] >> 1)
    )


def _validate_if_due(job: Job, log: RunLog, ticker: Ticker) -> None:
    """At the end of an epoch: scores the network, keeps it if it is the best so far, and saves."""
    settings, step = job.settings, job.learner.step
    epoch, rest = divmod(step, job.steps_per_epoch)
    if rest or not step or job.validated == step:
        return
    job.learner.check_gradients()
    if settings.validate_every and (step == job.total_steps or epoch % settings.validate_every == 0):
        save(job)  # validation takes time: a run that is killed in it resumes here
        network = job.learner.eval_model.eval()
        distributed.share_buffers(network)
        start = time.perf_counter()
        job.scores = job.validate(network)
        seconds = time.perf_counter() - start
        name, score = main_score(job.scores)
        log.write("validation", step, epoch=epoch, seconds=seconds, main=name, scale=job.scale, **job.scores)
        ticker.say(f"{job.label}: epoch {epoch}  {name} {score:.3f}  ({seconds:.0f} s)")
        better, job.best = score > job.best, max(score, job.best)
        job.stale = 0 if better else job.stale + 1
        if distributed.is_main():
            if better:
                job.save_weights(network, job.folder / "best.safetensors", {"metrics": job.scores, "epoch": epoch})
            plot_curves({job.label: read_log(log.path)}, job.folder / "curves.png")
    job.validated = step
    _save_if_due(job)


def main_score(scores: dict[str, float]) -> tuple[str, float]:
    """Name and value of the score that decides which network is the best: the first."""
    return next(iter(scores.items()))


def _save_if_due(job: Job) -> None:
    settings, step = job.settings, job.learner.step
    epoch, rest = divmod(step, job.steps_per_epoch)
    due = (rest == 0 and epoch % settings.checkpoint_every == 0) or step == job.total_steps
    if due or (settings.checkpoint_steps and step % settings.checkpoint_steps == 0):
        save(job)


def _stop_if_asked(job: Job, stop: StopSignal) -> None:
    if distributed.any_of(stop.requested)[0]:
        _stop(job, stop)


def _stop(job: Job, stop: StopSignal) -> None:
    with stop.saving():
        save(job)
    raise KeyboardInterrupt(f"stopped after step {job.learner.step}; the state is saved, and --resume auto goes on")


def save(job: Job) -> None:
    """Writes a checkpoint (rank 0 does) and removes those that are too old."""
    job.learner.check_gradients()
    if not distributed.is_main():
        return
    path, state = checkpoint.checkpoint_path(job.checkpoints, job.learner.step), state_dict(job)
    try:
        checkpoint.save_state(path, state)
    except OSError:  # a full disk: the older ones make room
        checkpoint.keep_last(job.checkpoints, 1)
        checkpoint.save_state(path, state)
    checkpoint.keep_last(job.checkpoints, job.settings.keep_checkpoints)


def _rescue(job: Job, name: str | None = None) -> str:
    """Saves the state of a run that cannot go on, if that is possible, and says where it is."""
    path = job.checkpoints / (name or checkpoint.checkpoint_path(job.checkpoints, job.learner.step).name)
    try:
        if distributed.is_main():
            checkpoint.save_state(path, state_dict(job))
        return f"The state after step {job.learner.step} is saved in {path}"
    except OSError:
        found = checkpoint.list_checkpoints(job.checkpoints)
        return f"Its state could not be saved; the last checkpoint is {found[-1] if found else 'none'}"


def state_dict(job: Job) -> dict[str, Any]:
    """Everything that the rest of the run depends on. Random numbers need no state, see `seed_step`."""
    learner = job.learner
    ema = learner.ema
    return {
        "step": learner.step,
        "steps_per_epoch": job.steps_per_epoch,
        "method": dict(learner.method.state_dict()),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "skips": learner.skips,
        "ema": ema and {"model": dict(ema.model.state_dict()), "updates": ema.updates},
        "validated": job.validated,
        "best": job.best if job.scores is not None else None,
        "scores": job.scores,
        "stale": job.stale,
        "facts": job.facts,
    }


def load_state_dict(job: Job, state: dict[str, Any]) -> None:
    """Restores a job to the state that `state_dict` gave.

    Raises:
        ValueError: the checkpoint is of another network, or of a run with or without an average.
    """
    learner = job.learner
    _refuse_other_keypoints(state["facts"], job.facts)
    if (state["ema"] is None) != (learner.ema is None):
        raise ValueError("the checkpoint and the recipe disagree on train.ema_decay: one keeps an average")
    try:
        learner.method.load_state_dict(state["method"])
    except RuntimeError as error:
        found = _mismatch(dict(learner.method.state_dict()), state["method"])
        raise ValueError(
            f"the checkpoint is of another architecture than the recipe's student or method: {found}"
        ) from error
    checkpoint.restore_optimizer(learner.optimizer, state["optimizer"])
    if state["scaler"]:  # a run that was begun without one takes a fresh scale
        learner.scaler.load_state_dict(state["scaler"])
    if learner.ema is not None:
        learner.ema.model.load_state_dict(state["ema"]["model"])
        learner.ema.updates = state["ema"]["updates"]
    learner.step, learner.skips = state["step"], state["skips"]
    job.validated, job.scores = state["validated"], state["scores"]
    job.stale = state.get("stale", 0)  # older checkpoints do not have it
    if state["best"] is not None:
        job.best = state["best"]


def _mismatch(own: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """The first few differences between two state dicts."""
    shapes = [
        f"{key} (checkpoint {tuple(given[key].shape)}, recipe {tuple(own[key].shape)})"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    parts = few("missing", own.keys() - given.keys()), few("unexpected", given.keys() - own.keys())
    return "; ".join(filter(None, (*parts, few("of another shape", shapes))))


def _refuse_other_keypoints(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, now = (facts.get("skeleton", {}).get("keypoints") for facts in (old, new))
    if before is not None and now is not None and list(before) != list(now):
        raise ValueError(
            f"the checkpoint learns the keypoints {list(before)}, the training data have {list(now)}, in this order: "
            "go on with the data that it began with"
        )
