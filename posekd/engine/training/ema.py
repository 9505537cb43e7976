"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of `model` that follows it: `average = decay * average + (1 - decay) * model`.

    The decay starts small, `min(decay, (1 + n) / (10 + n))` after n updates, so that a short run is not
    held back by its random initial weights. Floating-point buffers (batch statistics) are averaged too;
    counters are copied.

    Args:
        model: an uncompiled network.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def weight(self) -> float:
        """The share that the model has in the next update."""
        n = self.updates + 1
        return 1.0 - min(self.decay, (1 + n) / (10 + n))

    def update(self, model: nn.Module) -> None:
        """Takes one step towards `model`."""
        self.move(model, self.weight)
        self.updates += 1

    @torch.no_grad()
    def move(self, model: nn.Module, weight: float | Tensor) -> None:
        """`average += weight * (model - average)`; a weight on the device, a scalar, may change under a CUDA graph."""
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        for average, current in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        if isinstance(weight, Tensor):  # of which lerp takes one for each element only
            steps = torch._foreach_sub(currents, averages)
            torch._foreach_mul_(steps, weight)
            torch._foreach_add_(averages, steps)
        else:
            torch._foreach_lerp_(averages, currents, weight)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
