"""Which persons make up which batch: a pure function of (seed, epoch, step, rank)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, row of the person): all that a worker needs to redo a sample exactly."""


class BatchPlan(Sampler[list[Key]]):
    """Batches of `(epoch, row)` keys.

    Step s of an epoch takes `batch_size * world` rows from the epoch's permutation, and rank r the r-th part
    of them: a run resumed at any step sees what the uninterrupted run would have seen.

    Args:
        count: number of persons.
        batch_size: persons per batch, on each rank.
        shuffle: a new permutation each epoch, or file order.
        drop_last: leave out the persons that do not fill a last batch on every rank (training). Otherwise
            every person comes exactly once, and the last batches of some ranks are short or absent.
        seed: seed of the permutations.
        rank: this process, in 0..world-1.
        world: number of processes.

    Raises:
        ValueError: a number out of range, or so few persons that dropping would leave nothing.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1}, got {rank}")
        if drop_last and count < batch_size * world:
            raise ValueError(
                f"{count} persons do not fill one batch of {batch_size}"
                f"{f' on each of {world} processes' if world > 1 else ''}: lower batch_size to "
                f"{count // world or 1} or less"
            )
        self.count, self.batch_size, self.shuffle, self.drop_last = count, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch, self.start = 0, 0
        self.last: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Batches that this rank gets in an epoch."""
        per_step = self.batch_size * self.world
        full, rest = divmod(self.count, per_step)
        return full + (not self.drop_last and rest > self.rank * self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Rows in the order of `epoch`, int64 `[count]`."""
        if not self.shuffle:
            return np.arange(self.count)
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)

    def batch(self, epoch: int, step: int) -> list[Key]:
        """Keys of one batch of this rank; draws the epoch's permutation again."""
        return self._cut(self.order(epoch), epoch, step)

    def __iter__(self) -> Iterator[list[Key]]:
        """Batches of `self.epoch` from step `self.start` on; with `self.last`, (epochs, batches), those of all
        epochs up to there follow, so many of each.
        """
        first, start = self.epoch, self.start
        epochs, batches = self.last or (first + 1, len(self))
        for epoch in range(first, epochs):
            order = self.order(epoch)
            for step in range(start if epoch == first else 0, batches):
                yield self._cut(order, epoch, step)

    def _cut(self, order: np.ndarray, epoch: int, step: int) -> list[Key]:
        first = (step * self.world + self.rank) * self.batch_size
        return [(epoch, row) for row in order[first : first + self.batch_size].tolist()]
