"""One optimiser step: forward, loss, backward, update. Everything that the inner loop does is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posekd.distill.base import Method
from posekd.engine import distributed
from posekd.engine.training.ema import Ema
from posekd.precision import autocast
from posekd.structures import Batch, map_tensors


class NonFiniteError(ArithmeticError):
    """Something became NaN or infinite. The weights are still those of the step before.

    Attributes:
        step: number of optimiser steps done before.
        term: the loss term, or `gradient of ` and a parameter's name.
        sample_ids: annotation ids of the samples that caused it; those of the whole batch if the cause is not known.
    """

    def __init__(self, step: int, term: str, sample_ids: list[int], message: str) -> None:
        self.step, self.term, self.sample_ids = step, term, sample_ids
        super().__init__(message)


class NonFiniteLossError(NonFiniteError):
    """A loss term became NaN or infinite."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient became NaN or infinite, though every loss term is finite; under fp16, many times in a row."""


@dataclass
class Learner:
    """The state that training changes.

    Attributes:
        method: student, teacher and loss.
        optimizer: optimiser of the method's parameters.
        scaler: scales the loss under fp16; disabled otherwise.
        precision: `fp32`, `bf16` or `fp16`, for autocast.
        clip_norm: largest gradient norm; `None` does not clip.
        ema: the averaged student, if one is kept.
        max_skips: number of steps in a row that the scaler may skip.
        step: number of optimiser steps done.
        skips: number of steps in a row that the scaler has skipped.
        captured: takes a step in place of `train_step`, where CUDA graphs hold it.
        forward: the method, or its DistributedDataParallel wrapper.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: str = "fp32"
    clip_norm: float | None = None
    ema: Ema | None = None
    max_skips: int = 20
    step: int = 0
    skips: int = 0
    captured: Callable[[Learner, Sequence[Batch]], dict[str, float]] | None = None
    forward: nn.Module = field(init=False)
    parameters: list[nn.Parameter] = field(init=False)
    pending: PendingCheck | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.forward = distributed.replicate(self.method)

    @property
    def device(self) -> torch.device:
        """The student's device."""
        return self.parameters[0].device

    @property
    def eval_model(self) -> nn.Module:
        """The network to evaluate: the averaged student if there is one."""
        return self.ema.model if self.ema is not None else self.method.student

    def check_gradients(self) -> None:
        """Checks the gradients of the last step; call before saving or evaluating.

        Raises:
            NonFiniteGradientError: they were not finite. The update was skipped, and `step` is set back.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return
        largest = pending.largest.wait()
        if all(map(math.isfinite, largest)):
            self.skips = 0
            return
        self.skips += 1
        if self.scaler.is_enabled() and self.skips <= self.max_skips:
            return
        self.optimizer.zero_grad(set_to_none=True)
        self.step = pending.step
        worst = next(p for p, value in zip(pending.parameters, largest, strict=True) if not math.isfinite(value))
        name = next(name for name, p in self.method.named_parameters() if p is worst)
        ids = [sample for part in distributed.gather(pending.sample_ids.tolist()) for sample in part]
        message = f"step {self.step}: the gradient of {name} is not finite, although the loss is ({pending.loss:g})"
        if self.scaler.is_enabled():
            message += (
                f", {self.skips} times in a row (train.max_skips): the fp16 scaler has come down to "
                f"{self.scaler.get_scale():g}; train in bf16 or fp32"
            )
        raise NonFiniteGradientError(
            self.step, f"gradient of {name}", ids, f"{message}; the batch holds the annotations {_listed(ids)}"
        )


@dataclass
class PendingCheck:
    """What `check_gradients` checks: the largest magnitude in each gradient of `parameters`, and the sample ids."""

    step: int
    loss: float
    largest: HostCopy
    parameters: list[nn.Parameter]
    sample_ids: Tensor


class HostCopy:
    """Numbers that are being copied to the host while the device goes on computing."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = values

    def wait(self) -> list[Any]:
        """The numbers, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def train_step(learner: Learner, batches: Sequence[Batch]) -> dict[str, float]:
    """Accumulates the gradients of some batches and takes one optimiser step.

    A step whose gradient is not finite changes nothing, and the next call (or `learner.check_gradients()`) says so: the
    device need not be waited for.

    Args:
        learner: changed in place; its `step` goes up by one.
        batches: the micro-batches; the loss is their mean.

    Returns:
        The mean of each weighted loss term, over all processes, and their sum as `loss`.

    Raises:
        NonFiniteError: before the update, so that the weights are still those of the last good step.
    """
    totals: dict[str, float] = {}
    for i, batch in enumerate(batches, 1):
        # gradients are averaged over the processes once per step, by the last backward
        with distributed.no_sync(learner.forward) if i < len(batches) else nullcontext():
            terms, stacked = forward(learner, batch)
            reading = HostCopy(torch.stack((distributed.mean(stacked), stacked)))
            backward(learner, terms, len(batches))
        # read after backward has been queued: a GPU still has work while the host looks at the forward's result
        values, own = reading.wait()
        if not all(map(math.isfinite, values)):
            raise loss_error(learner, batch, dict(zip(terms, own, strict=True)))
        for name, value in zip(terms, values, strict=True):
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    learner.check_gradients()
    loss_value = sum(totals.values())
    update(learner, torch.cat([batch.sample_ids for batch in batches]), loss_value)
    return {**totals, "loss": loss_value}


def forward(learner: Learner, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """The weighted loss terms of a batch, and their bare values, float32 `[T]`."""
    with autocast(learner.device, learner.precision):
        terms: dict[str, Tensor] = learner.forward(batch)
    return terms, torch.stack([term.detach().float() for term in terms.values()])


def backward(learner: Learner, terms: dict[str, Tensor], batches: int) -> None:
    """Adds the (scaled) gradient of the terms' sum, divided by the step's number of batches, to the parameters'."""
    loss = torch.stack(list(terms.values())).sum() / batches
    learner.scaler.scale(loss).backward()


def update(learner: Learner, sample_ids: Tensor, loss: float) -> None:
    """The optimiser's part of a step: look for non-finite gradients, unscale, clip, update, average.

    Args:
        learner: whose parameters have their gradients.
        sample_ids: int64 `[B]`, samples of the step, for the message if a gradient is not finite.
        loss: loss of the step, for the same message.
    """
    parameters, largest = apply_gradients(learner)
    learner.pending = PendingCheck(learner.step, loss, HostCopy(largest), parameters, sample_ids)
    if not learner.scaler.is_enabled() and not _is_fused(learner.optimizer):
        learner.check_gradients()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update(learner.method.student)
    learner.step += 1


def apply_gradients(learner: Learner, sound: Tensor | None = None) -> tuple[list[nn.Parameter], Tensor]:
    """Checks, unscales and clips the gradients and takes the optimiser's step, unless one of them is not finite.

    Two passes over the gradients: their norms, then the update, which fused optimisers divide and skip by numbers that
    stay on the device.

    Args:
        learner: whose parameters have their gradients.
        sound: bool scalar, false where the step is to be skipped anyway; None: it is not.

    Returns:
        The parameters that have a gradient, and the largest magnitude in each gradient, float32 `[P]`.
    """
    optimizer, scaler = learner.optimizer, learner.scaler
    parameters = [p for p in learner.parameters if p.grad is not None]
    gradients = [p.grad for p in parameters if p.grad is not None]
    largest = torch.stack(torch._foreach_norm(gradients, math.inf)).float()
    finite = largest.isfinite().all()
    skipped = (~(finite if sound is None else finite & sound)).float()
    divisor = scaler._scale if scaler.is_enabled() else None
    if learner.clip_norm is not None:
        total = torch.stack(torch._foreach_norm(gradients)).float().norm()
        factor = (learner.clip_norm / ((total if divisor is None else total / divisor) + 1e-6)).clamp(max=1.0)
        divisor = factor.reciprocal() if divisor is None else divisor / factor
    if _is_fused(optimizer):
        optimizer.found_inf, optimizer.grad_scale = skipped, divisor  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]
    elif not skipped.item():
        if divisor is not None:
            torch._foreach_div_(gradients, divisor)
        optimizer.step()
    if scaler.is_enabled():  # as GradScaler.update does, from what was found here
        growth = scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()
        assert scaler._scale is not None
        assert scaler._growth_tracker is not None
        torch._amp_update_scale_(scaler._scale, scaler._growth_tracker, skipped, *growth)
    return parameters, largest


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("fused"))


def loss_error(learner: Learner, batch: Batch, values: dict[str, float]) -> NonFiniteLossError:
    """The error for a batch whose loss is not finite here, or in another process."""
    learner.optimizer.zero_grad(set_to_none=True)
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    bad_samples = _bad_samples(learner, batch) if bad else []
    own = (bad[0], values[bad[0]], bad_samples or batch.sample_ids.tolist(), bool(bad_samples)) if bad else None
    found = [place for place in distributed.gather(own) if place is not None]
    term, value, _, single = found[0]
    ids = [sample for place in found for sample in place[2]]
    who = "because of the annotations" if single else "the batch holds the annotations"
    message = f"step {learner.step}: the loss term {term!r} is {value}; {who} {_listed(ids)}"
    return NonFiniteLossError(learner.step, term, ids, message)


@torch.no_grad()
def _bad_samples(learner: Learner, batch: Batch) -> list[int]:
    """Ids of the samples that are not finite, or that alone give such a loss; empty if there are none."""
    ids: list[int] = batch.sample_ids.tolist()
    samples = [batch.rows(slice(i, i + 1)) for i in range(len(ids))]
    found = [i for i, sample in zip(ids, samples, strict=True) if not _is_finite(_tensors(sample))]
    teacher = learner.method.teacher
    if not found and not (teacher is not None and teacher.sharded):  # all processes would have to run it together
        was_training = learner.method.training
        learner.method.eval()
        with autocast(learner.device, learner.precision):
            found = [
                i for i, sample in zip(ids, samples, strict=True) if not _is_finite(learner.method(sample).values())
            ]
        learner.method.train(was_training)
    return found if len(found) < len(ids) else []


def _is_finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _tensors(sample: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    found: list[Tensor] = []
    map_tensors(sample, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
