"""The settings of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posekd.precision import Precision


@dataclass(frozen=True)
class LoopSettings:
    """How long and how to train, and how often to validate and save.

    Attributes:
        epochs: passes over the training persons.
        accumulate: forward passes that share one optimiser step; a batch is cut into that many.
        device: `auto` (the GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        threads: CPU threads of this process; `null` leaves torch's own number (`OMP_NUM_THREADS`, else all cores).
        precision: `fp32`, or autocast to `bf16` or `fp16` (with a gradient scaler).
        channels_last: memory format of networks and images.
        compile: which networks are compiled by `torch.compile`: `none`, `student`, `teacher` or `both`.
        compile_regions: compile the blocks that a network repeats, each kind once, and not the network as a whole.
        graph: capture the whole step once as a CUDA graph and replay it, so that the host launches one graph and not
            thousands of kernels (in one process; see `engine.training.graph`).
        teacher_dtype: parameters and compute of the teacher; `null` follows `precision`.
        fold_teacher: fold the teacher's batch norms into its convolutions: the same answers to rounding, sooner. (Not
            where a method wants its norms to follow the batch.)
        shard_teacher: spread the teacher's parameters over the processes (FSDP2), if it does not fit on one GPU.
        teacher_cache: folder that `posekd cache-teacher` wrote: its heatmaps are used, and the teacher is not run.
        max_skips: under fp16, the largest number of steps in a row that the gradient scaler may skip.
        ema_decay: decay, in 0..1, of an exponential moving average of the student, which is evaluated; `null` for none.
        validate_every: epochs between validations, and always at the end; 0 for never.
        patience: stop after so many validations in a row that were no better than the best before; `null` for never.
        checkpoint_every: epochs between checkpoints.
        checkpoint_steps: optimiser steps between further checkpoints, for long epochs; `null` for none.
        keep_checkpoints: number of the last checkpoints to keep.
        log_every: optimiser steps between log records.
    """

    epochs: int = 210
    accumulate: int = 1
    device: str = "auto"
    threads: int | None = None
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: Literal["none", "student", "teacher", "both"] = "none"
    compile_regions: bool = False
    graph: bool = False
    teacher_dtype: Precision | None = None
    fold_teacher: bool = True
    shard_teacher: bool = False
    teacher_cache: str | None = None
    max_skips: int = 20
    ema_decay: float | None = None
    validate_every: int = 10
    patience: int | None = None
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "checkpoint_every", "keep_checkpoints", "log_every", "max_skips"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be 1 or more, got {getattr(self, name)}")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"train.checkpoint_steps must be 1 or more, or null; got {self.checkpoint_steps}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"train.threads must be 1 or more, or null; got {self.threads}")
        if self.validate_every < 0:
            raise ValueError(f"train.validate_every must be 0 (never) or more, got {self.validate_every}")
        if self.patience is not None and (self.patience < 1 or not self.validate_every):
            raise ValueError(f"train.patience counts validations: 1 or more, or null; got {self.patience}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must be in [0, 1), or null; got {self.ema_decay}")
