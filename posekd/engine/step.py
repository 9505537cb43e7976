"""One optimiser step: forward, loss, backward, update. Everything that the inner loop does is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posekd.distill.base import Method
from posekd.engine.ema import Ema
from posekd.structures import PoseBatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(ArithmeticError):
    """A loss term became NaN or infinite.

    Attributes:
        step: optimiser steps done before.
        term: name of the first such term.
        sample_ids: annotation ids of the batch.
    """

    def __init__(self, step: int, values: dict[str, float], sample_ids: list[int]) -> None:
        self.step, self.sample_ids = step, sample_ids
        self.term = next(name for name, value in values.items() if not math.isfinite(value))
        super().__init__(
            f"step {step}: the loss term {self.term!r} is {values[self.term]}; the batch holds the annotations "
            f"{', '.join(map(str, sample_ids))}"
        )


@dataclass
class Learner:
    """What changes while training.

    Attributes:
        method: student, teacher and loss.
        optimizer: over the method's parameters.
        scaler: of the loss under fp16; disabled otherwise.
        precision: `fp32`, `bf16` or `fp16`, for autocast.
        clip_norm: largest gradient norm, `None` for any.
        ema: the averaged student, if one is kept.
        step: optimiser steps done.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    precision: str = "fp32"
    clip_norm: float | None = None
    ema: Ema | None = None
    step: int = 0
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def device(self) -> torch.device:
        """Where the student lives."""
        return self.parameters[0].device

    @property
    def best_guess(self) -> nn.Module:
        """The network to evaluate: the averaged student if there is one."""
        return self.ema.model if self.ema is not None else self.method.student


class _HostCopy:
    """The values of some scalars, on their way to the host while the device computes on."""

    def __init__(self, terms: dict[str, Tensor]) -> None:
        self._names = list(terms)
        stacked = torch.stack([term.detach().float() for term in terms.values()])
        self._event: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._values = torch.empty(stacked.shape, pin_memory=True)
            self._values.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._values = stacked

    def wait(self) -> dict[str, float]:
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


def train_step(learner: Learner, batches: Sequence[PoseBatch]) -> dict[str, float]:
    """Accumulates the gradients of some batches and takes one optimiser step.

    Args:
        learner: changed in place; its `step` goes up by one.
        batches: the micro-batches; the loss is their mean.

    Returns:
        The mean of each weighted loss term, and their sum as `loss`.

    Raises:
        NonFiniteLossError: before the update, so that the weights are still those of the last good step.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        with torch.autocast(learner.device.type, DTYPES[learner.precision], enabled=learner.precision != "fp32"):
            terms = learner.method(batch)
        reading = _HostCopy(terms)
        loss = torch.stack(list(terms.values())).sum() / len(batches)
        learner.scaler.scale(loss).backward()
        # read after backward has been queued: a GPU still has work while the host looks at the forward's result
        values = reading.wait()
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteLossError(learner.step, values, batch.sample_ids.tolist())
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    _update(learner)
    return {**totals, "loss": sum(totals.values())}


def _update(learner: Learner) -> None:
    if learner.clip_norm is not None:
        learner.scaler.unscale_(learner.optimizer)
        nn.utils.clip_grad_norm_(learner.parameters, learner.clip_norm)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update(learner.method.student)
    learner.step += 1
