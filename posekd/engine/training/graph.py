"""The training step as one function over buffers that stay where they are, which a GPU captures once and replays.

A step of a small student launches thousands of small kernels, and the host takes longer over that than the device over
the work. Here teacher, student, loss, backward, the check of the gradients, optimiser and average are one function of
fixed memory: the batch is copied into its buffers, and what changes from step to step (learning rate, loss scale, the
average's weight) stands in tensors on the device. Random numbers need nothing: a replay takes the seed that the
generator has then. A GPU runs the function as it is for the first steps, captures it, and replays it from then on; the
CPU always runs it as it is, which is how it is tested.

What differs from `step.train_step`: the host waits for the end of the step, not of its forward pass, and so is told at
once of a gradient that is not finite. A loss that is not finite is found on the device, which then changes neither
weights nor average; the fp16 scale may have been halved when the error is raised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from posekd.engine.training import step as eager
from posekd.engine.training.step import HostCopy, Learner, PendingCheck
from posekd.structures import Batch, map_tensors

MOST_SHAPES = 4  # of batches that are captured; each holds the memory of a step's batch
WARM_UP = 3  # steps of a shape before it is captured: libraries choose their kernels, the optimiser makes its state


class CapturedSteps:
    """Takes a learner's steps as `train_step` does; eagerly for batches of a fifth shape, or a method of no fixed ones.

    Args:
        learner: its optimiser made with `capturable`; the learning rates move to the device.
    """

    def __init__(self, learner: Learner) -> None:
        self.shapes: dict[Any, _Static] = {}
        for group in learner.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=learner.device)

    def __call__(self, learner: Learner, batches: Sequence[Batch]) -> dict[str, float]:
        """See `train_step`: the same arguments, results and errors."""
        if not learner.method.fixed_shapes:
            return eager.train_step(learner, batches)
        kept = [replace(batch, pixels=None) for batch in batches]  # bytes, as many as there happen to be
        shape = tuple((tuple(x.shape), x.dtype) for batch in kept for x in _tensors(batch))
        if shape not in self.shapes:
            if len(self.shapes) == MOST_SHAPES:
                return eager.train_step(learner, batches)
            self.shapes[shape] = _Static(learner, kept)
        static = self.shapes[shape]
        outcome = static.run(kept)
        return _told(learner, batches, static, outcome)


def _told(learner: Learner, batches: Sequence[Batch], static: _Static, outcome: Tensor) -> dict[str, float]:
    """What the host makes of a step that the device has taken."""
    numbers, terms = HostCopy(outcome).wait(), static.terms
    totals = dict.fromkeys(terms, 0.0)
    for i, batch in enumerate(batches):
        values = numbers[i * len(terms) : (i + 1) * len(terms)]
        if not all(map(math.isfinite, values)):
            raise eager.loss_error(learner, batch, dict(zip(terms, values, strict=True)))
        for name, value in zip(terms, values, strict=True):
            totals[name] += value / len(batches)
    loss = sum(totals.values())
    ids = torch.cat([batch.sample_ids for batch in batches])
    largest = HostCopy(torch.tensor(numbers[len(terms) * len(batches) :]))
    learner.pending = PendingCheck(learner.step, loss, largest, static.parameters, ids)
    if learner.ema is not None:
        learner.ema.updates += 1
    learner.step += 1
    learner.check_gradients()
    return {**totals, "loss": loss}


class _Static:
    """A step on batches of one shape."""

    def __init__(self, learner: Learner, batches: Sequence[Batch]) -> None:
        self.learner = learner
        self.batches = [map_tensors(batch, torch.clone) for batch in batches]
        self.weight = torch.zeros((), device=learner.device)  # of the student in its average
        self.terms: tuple[str, ...] = ()
        self.parameters: list[nn.Parameter] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.outcome: Tensor | None = None
        self.runs = 0

    def run(self, batches: Sequence[Batch]) -> Tensor:
        """Takes a step on these batches; see `step` for what it returns."""
        for own, given in zip(self.batches, batches, strict=True):
            for buffer, values in zip(_tensors(own), _tensors(given), strict=True):
                buffer.copy_(values, non_blocking=True)
        if self.learner.ema is not None:
            self.weight.fill_(self.learner.ema.weight)
        self.runs += 1
        if self.learner.device.type != "cuda":
            return self.step()
        if self.graph is None and self.runs <= WARM_UP:
            return self._beside()
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        assert self.outcome is not None
        self.graph.replay()
        return self.outcome

    def step(self) -> Tensor:
        """The step: reads the buffers, changes the learner's tensors, and never waits for the device.

        Returns:
            float32 `[batches * T + P]`: the values of each batch's loss terms, and each gradient's largest magnitude.
        """
        learner, found = self.learner, []
        for batch in self.batches:
            terms, values = eager.forward(learner, batch)
            eager.backward(learner, terms, len(self.batches))
            found.append(values)
        self.terms = tuple(terms)
        sound = torch.cat(found).isfinite().all()
        self.parameters, largest = eager.apply_gradients(learner, sound)
        learner.optimizer.zero_grad(set_to_none=True)
        if learner.ema is not None:
            learner.ema.move(learner.method.student, self.weight * sound)
        return torch.cat([*found, largest])

    def _beside(self) -> Tensor:
        """The step on a stream of its own, as a capture wants it."""
        stream = torch.cuda.Stream(self.learner.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outcome = self.step()
        torch.cuda.current_stream().wait_stream(stream)
        outcome.record_stream(torch.cuda.current_stream())
        return outcome

    def _capture(self) -> None:
        """Notes the step's kernels; nothing runs."""
        graph = torch.cuda.CUDAGraph()
        try:
            # thread-local: the loader's thread, which pins memory meanwhile, must not spoil the capture
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.outcome = self.step()
        except RuntimeError as error:
            name = type(self.learner.method).__name__
            raise RuntimeError(
                f"train.graph: a step of {name} cannot be captured as a CUDA graph ({error}); set train.graph to false"
            ) from error
        self.graph = graph


def _tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, in the order of its fields."""
    found: list[Tensor] = []
    map_tensors(batch, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
