"""The training loop: epochs, validation, checkpoints, resume. It knows methods only by `distill.base.Method`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import nn

from posekd.engine import checkpoint
from posekd.engine.curves import plot_curves
from posekd.engine.optim import ScheduleSettings, rate_factor, set_rate
from posekd.engine.progress import RunLog, Ticker, read_log
from posekd.engine.step import Learner, NonFiniteLossError, train_step
from posekd.structures import PackedBatch, PoseBatch


@dataclass(frozen=True)
class LoopSettings:
    """How long, how, and how often to look and save.

    Attributes:
        epochs: passes over the training persons.
        accumulate: forward passes that share one optimiser step; a batch is cut into that many.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `fp32`, or autocast to `bf16` or `fp16` (with a gradient scaler).
        channels_last: memory format of networks and images.
        compile: which networks `torch.compile` gets: `none`, `student`, `teacher` or `both`.
        teacher_dtype: parameters and compute of the teacher; `null` follows `precision`.
        ema_decay: keep an exponential moving average of the student and evaluate that.
        validate_every: epochs between validations, and always at the end; 0 for never.
        checkpoint_every: epochs between checkpoints.
        checkpoint_steps: also save every so many steps, for long epochs.
        keep_checkpoints: how many of the last checkpoints stay.
        log_every: steps between log records.
    """

    epochs: int = 210
    accumulate: int = 1
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: Literal["none", "student", "teacher", "both"] = "none"
    teacher_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    ema_decay: float | None = None
    validate_every: int = 10
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be 1 or more, got {getattr(self, name)}")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"train.checkpoint_steps must be 1 or more, or null; got {self.checkpoint_steps}")
        if self.validate_every < 0:
            raise ValueError(f"train.validate_every must be 0 (never) or more, got {self.validate_every}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1), or null; got {self.ema_decay}")


class Batches(Protocol):
    """What the loop asks of a loader: batch `i` of epoch `e` is a pure function of the seed, `e` and `i`."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[PackedBatch]:
        """The batches of an epoch from the `start`-th on."""


@dataclass
class Job:
    """What the loop works on.

    Attributes:
        learner: what changes.
        loader: training batches, `accumulate` of them for each step.
        prepare: from packed bytes to a batch on the device.
        validate: from a network to its scores, the main one (by which the best is kept) first; called with a network
            in eval mode.
        save_weights: writes a network and a card with the given facts to a path.
        folder: of the run.
        settings: see `LoopSettings`.
        schedule: learning rate over time.
        lr: its peak.
        facts: saved with every checkpoint (the recipe).
        label: for the progress display.
        best: the best main score of a validation so far.
        scores: of the last validation.
    """

    learner: Learner
    loader: Batches
    prepare: Callable[[PackedBatch], PoseBatch]
    validate: Callable[[nn.Module], dict[str, float]]
    save_weights: Callable[[nn.Module, Path, dict[str, Any]], None]
    folder: Path
    settings: LoopSettings
    schedule: ScheduleSettings
    lr: float
    facts: dict[str, Any]
    label: str = "train"
    best: float = float("-inf")
    scores: dict[str, float] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return len(self.loader) // self.settings.accumulate

    @property
    def total_steps(self) -> int:
        """Optimiser steps in all."""
        return self.steps_per_epoch * self.settings.epochs

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"


def fit(job: Job) -> dict[str, float] | None:
    """Trains from `job.learner.step` to the end.

    Returns:
        The scores of the last validation, if there was one.

    Raises:
        NonFiniteLossError: a loss term is NaN or infinite; the state is saved first.
        KeyboardInterrupt: after SIGINT or SIGTERM, once the step is done and the state is saved.
        ValueError: fewer batches than one step accumulates.
    """
    if job.steps_per_epoch < 1:
        raise ValueError(
            f"{len(job.loader)} batches an epoch are too few for train.accumulate {job.settings.accumulate}"
        )
    log = RunLog(job.folder, job.learner.step)
    ticker = Ticker(job.label, job.total_steps, job.learner.step)
    weights = job.learner.method.weights()
    ticker.say(f"{job.label}: loss = " + " + ".join(f"{weight:g} {term}" for term, weight in weights.items()))
    log.write("start", job.learner.step, weights=weights)
    try:
        with StopSignal() as stop:
            while job.learner.step < job.total_steps:
                _train_epoch(job, log, ticker, stop)
                _validate_if_due(job, log, ticker)
                _save_if_due(job, stop)
    except NonFiniteLossError as error:
        path = job.checkpoints / f"nonfinite_{error.step:09d}.safetensors"
        checkpoint.save_state(path, state_dict(job))
        error.args = (f"{error}. The state before this step is saved in {path}",)
        raise
    finally:
        ticker.close()
        log.close()
    if not job.settings.validate_every:  # otherwise the last validation has drawn them
        plot_curves({job.label: read_log(log.path)}, job.folder / "curves.png")
    job.save_weights(job.learner.best_guess, job.folder / "last.safetensors", {"metrics": job.scores})
    return job.scores


def _train_epoch(job: Job, log: RunLog, ticker: Ticker, stop: StopSignal) -> None:
    """The rest of the epoch that the learner is in."""
    learner, settings = job.learner, job.settings
    epoch, done = divmod(learner.step, job.steps_per_epoch)
    learner.method.train()
    packed = _undisturbed(job.loader.epoch(epoch, done * settings.accumulate))
    for _ in range(done, job.steps_per_epoch):
        start = time.perf_counter()
        group = list(islice(packed, settings.accumulate))
        waited = time.perf_counter() - start
        if not group:  # whole batches of unreadable images were left out: the epoch is shorter than planned
            learner.step = (epoch + 1) * job.steps_per_epoch
            break
        lr = job.lr * rate_factor(job.schedule, learner.step, job.steps_per_epoch, job.total_steps)
        set_rate(learner.optimizer, lr)
        losses = train_step(learner, [job.prepare(batch) for batch in group])
        report = learner.step % settings.log_every == 0 or learner.step == job.total_steps
        facts = ticker.tick(sum(map(len, group)), waited, losses["loss"], report=report)
        if report:
            log.write("train", learner.step, epoch=epoch, lr=lr, **losses, **facts)
        if learner.step % job.steps_per_epoch:  # the end of an epoch is saved after its validation
            _save_if_due(job, stop)


def _validate_if_due(job: Job, log: RunLog, ticker: Ticker) -> None:
    """Scores the network at the end of an epoch, and keeps it if it is the best so far."""
    settings, step = job.settings, job.learner.step
    epoch = step // job.steps_per_epoch
    if not settings.validate_every or (step < job.total_steps and epoch % settings.validate_every):
        return
    network = job.learner.best_guess.eval()
    start = time.perf_counter()
    # validation must not disturb the random numbers of training
    with torch.random.fork_rng(devices=_cuda_devices(job.learner.device)):
        job.scores = job.validate(network)
    seconds = time.perf_counter() - start
    name, score = main_score(job.scores)
    log.write("validation", step, epoch=epoch, seconds=seconds, main=name, **job.scores)
    ticker.say(f"{job.label}: epoch {epoch}  {name} {score:.3f}  ({seconds:.0f} s)")
    if score > job.best:
        job.best = score
        job.save_weights(network, job.folder / "best.safetensors", {"metrics": job.scores, "epoch": epoch})
    plot_curves({job.label: read_log(log.path)}, job.folder / "curves.png")


def main_score(scores: dict[str, float]) -> tuple[str, float]:
    """Name and value of the score that says which network is the best: the first."""
    return next(iter(scores.items()))


def _save_if_due(job: Job, stop: StopSignal) -> None:
    """Saves when the settings say so, and when somebody asked to stop."""
    settings, step = job.settings, job.learner.step
    epoch, rest = divmod(step, job.steps_per_epoch)
    due = (rest == 0 and epoch % settings.checkpoint_every == 0) or step == job.total_steps
    if settings.checkpoint_steps and step % settings.checkpoint_steps == 0:
        due = True
    if due or stop.requested:
        save(job)
    if stop.requested:
        raise KeyboardInterrupt(f"stopped after step {step}; the state is saved, and --resume auto goes on")


def save(job: Job) -> Path:
    """Writes a checkpoint and removes those that are too old."""
    path = checkpoint.checkpoint_path(job.checkpoints, job.learner.step)
    checkpoint.save_state(path, state_dict(job))
    checkpoint.keep_last(job.checkpoints, job.settings.keep_checkpoints)
    return path


def state_dict(job: Job) -> dict[str, Any]:
    """Everything that the rest of the run depends on."""
    learner = job.learner
    ema = learner.ema
    return {
        "step": learner.step,
        "method": dict(learner.method.state_dict()),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "ema": ema and {"model": dict(ema.model.state_dict()), "updates": ema.updates},
        "random": checkpoint.random_state(),
        "best": job.best if job.scores is not None else None,
        "scores": job.scores,
        "facts": job.facts,
    }


def load_state_dict(job: Job, state: dict[str, Any]) -> None:
    """Puts a job where `state_dict` left it.

    Raises:
        ValueError: the checkpoint is of another network, or of a run with or without an average.
    """
    learner = job.learner
    if (state["ema"] is None) != (learner.ema is None):
        raise ValueError("the checkpoint and the recipe disagree on train.ema_decay: one keeps an average")
    try:
        learner.method.load_state_dict(state["method"])
    except RuntimeError as error:
        raise ValueError(f"the checkpoint is of another architecture than the recipe's student: {error}") from error
    checkpoint.restore_optimizer(learner.optimizer, state["optimizer"])
    learner.scaler.load_state_dict(state["scaler"])
    if learner.ema is not None:
        learner.ema.model.load_state_dict(state["ema"]["model"])
        learner.ema.updates = state["ema"]["updates"]
    checkpoint.restore_random_state(state["random"])
    learner.step, job.scores = state["step"], state["scores"]
    if state["best"] is not None:
        job.best = state["best"]


def _undisturbed(batches: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
    """The same batches; a DataLoader that starts draws a random number, which training must not miss."""
    with torch.random.fork_rng(devices=()):
        first = next(batches, None)
    if first is not None:
        yield first
        yield from batches


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


class StopSignal:
    """Turns SIGINT and SIGTERM into a request that the loop answers after the step; a second one interrupts."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread, which alone may set handlers
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
