"""Optimiser and learning rate. The rate is a pure function of the step, so resuming needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimSettings:
    """The optimiser.

    Attributes:
        name: `adam`, `adamw`, `sgd` or `rmsprop`.
        lr: peak learning rate.
        weight_decay: L2 penalty (`adam`, `sgd`, `rmsprop`) or decoupled decay (`adamw`).
        betas: decay rates of Adam's two averages.
        momentum: momentum of SGD.
        alpha: decay rate of RMSProp's average of squared gradients.
        clip_norm: largest norm of the whole gradient; `null` does not clip.
    """

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    alpha: float = 0.99
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optim.clip_norm must be positive or null, got {self.clip_norm}")


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time.

    Attributes:
        kind: `step` multiplies by `gamma` at each milestone; `cosine` falls to 0 at the last step.
        milestones: epochs (counted from 0) at whose start `step` multiplies.
        gamma: factor of `step`.
        warmup_steps: number of optimiser steps over which the rate rises linearly from `lr / warmup_steps`.
    """

    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = (170, 200)
    gamma: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones must rise, got {list(self.milestones)}")
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps must be 0 or more, got {self.warmup_steps}")


def rate_factor(schedule: ScheduleSettings, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The factor on the peak learning rate at `step` (counted from 0)."""
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.kind == "cosine":
        return warmup * 0.5 * (1.0 + math.cos(math.pi * step / max(1, total_steps)))
    epoch = step // steps_per_epoch
    return warmup * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)


def make_optimizer(
    parameters: Iterable[nn.Parameter], settings: OptimSettings, capturable: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of those of `parameters` that are trained, fused where torch has a fused kernel.

    Args:
        parameters: of which those without a gradient are left out.
        settings: which optimiser.
        capturable: whether a CUDA graph may hold its step, which then reads the learning rate from the device.

    Raises:
        ValueError: an optimiser that no graph can hold.
    """
    if capturable and settings.name == "rmsprop":
        raise ValueError(
            "train.graph: rmsprop has no fused kernel: take adam, adamw or sgd, or set train.graph to false"
        )
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    lr, decay = settings.lr, settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(trainable, lr=lr, momentum=settings.momentum, weight_decay=decay, fused=fused)
    if settings.name == "rmsprop":  # torch has no fused one
        return torch.optim.RMSprop(trainable, lr=lr, alpha=settings.alpha, weight_decay=decay)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(
        trainable, lr=lr, betas=settings.betas, weight_decay=decay, fused=fused, capturable=capturable and fused
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter group, where it stands: on the host, or in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
