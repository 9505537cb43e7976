"""From a dataset to packed batches, epoch by epoch, by workers that decode and copy bytes, nothing else."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader

from posekd import codecs
from posekd.data.cache import CachedImages
from posekd.data.packing import PackedDataset, PersonDataset
from posekd.data.records import BadImageError, PoseSource
from posekd.data.sampler import BatchPlan
from posekd.data.teacher_maps import TeacherMaps
from posekd.structures import PackedBatch

MAX_LOST_BATCHES = 10  # in a row, before an epoch that finds no readable image gives up


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: persons a batch (images, for a bottom-up network), on each process.
        workers: decoding processes; 0 decodes in the calling process.
        prefetch: batches that each worker keeps ready.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.
        cache_images: keep decoded images in memory (with workers: decoded once, before they start).
        on_bad_image: "refuse" an unreadable image, or "skip" its persons with a counted warning.
        padding: factor by which crops are larger than boxes.
        start_method: how workers start; the platform's first choice if None.
        reduced_decode: in training, decode a JPEG at 1/2, 1/4 or 1/8 of its size where each crop of the batch still
            gets at least one decoded pixel for each of its own. Large people are decoded faster, and look different:
            averaged, where sampling the whole picture skips pixels, as published training and every evaluation do
            (these always decode whole pictures). No effect with `cache_images`.
    """

    batch_size: int = 32
    workers: int = 2
    prefetch: int = 2
    pin_memory: bool = False
    cache_images: bool = False
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    padding: float = codecs.PADDING
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    reduced_decode: bool = False


class PoseLoader:
    """Packed batches of a dataset, epoch by epoch.

    Args:
        source: the dataset.
        size: `(height, width)` of the crops.
        settings: batch size, workers, habits.
        training: shuffle, augment and drop the incomplete last batch; otherwise every person once, in order.
        augmentation: an `Augmentation`, used in training; None for none.
        seed: of shuffling and augmentation.
        rank: this process.
        world: number of processes.
        teacher_maps: cached heatmaps of the dataset, to go with the batches.

    Attributes:
        skipped: persons left out so far because their image could not be read.
    """

    lost = "Its persons are"  # begins what a warning says of the rows of an unreadable image

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        settings: LoaderSettings | None = None,
        *,
        training: bool,
        augmentation: Any = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        teacher_maps: TeacherMaps | None = None,
    ) -> None:
        settings = settings or LoaderSettings()
        if settings.cache_images:
            source = CachedImages(source)
            if settings.workers > 0:
                source.fill(skip_bad=settings.on_bad_image == "skip")
        self.settings, self.skipped, self.training = settings, 0, training
        self.teacher_maps = teacher_maps
        self.dataset = self._open(source, size, augmentation if training else None, seed)
        self.plan = self._plan(training, seed, rank, world)
        self._loader = _data_loader(self.dataset, self.plan, settings)
        self._reported: set[int] = set()
        self._last_bad = 0

    def _open(self, source: PoseSource, size: tuple[int, int], augmentation: Any, seed: int) -> PackedDataset:
        return PersonDataset(
            source,
            size,
            augmentation=augmentation,
            seed=seed,
            padding=self.settings.padding,
            teacher_maps=self.teacher_maps,
            **self._habits(),
        )

    def _habits(self) -> dict[str, Any]:
        """The settings that a dataset takes over as they are."""
        reduced = self.settings.reduced_decode and self.training
        return {"on_bad_image": self.settings.on_bad_image, "reduced_decode": reduced}

    def _plan(self, training: bool, seed: int, rank: int, world: int) -> BatchPlan:
        count, batch_size = len(self.dataset), self.settings.batch_size
        return BatchPlan(count, batch_size, shuffle=training, drop_last=training, seed=seed, rank=rank, world=world)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.plan)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[PackedBatch]:
        """Batches of an epoch, from step `start` on.

        With `on_bad_image` "skip" a batch may be shorter than asked. One that lost all its persons is left out
        of an evaluation; in training one black picture without labelled joints stands in for it, so that every
        process makes the same number of steps. Both are said.

        Raises:
            BadImageError: an image cannot be read and is not to be skipped, or no image of ten batches in a
                row, or of the whole epoch, can be read.
        """
        self.plan.epoch, self.plan.start = epoch, start
        persons, lost = 0, 0
        for batch in _start_quietly(self._loader):
            self._report(batch)
            persons += len(batch)
            lost = 0 if len(batch) else lost + 1
            if lost == MAX_LOST_BATCHES:
                raise BadImageError(f"no image of {lost} batches in a row could be read; the last: {self._reason()}")
            if len(batch):
                yield batch
            elif self.training:
                yield self.dataset.stand_in(epoch, batch.skipped)
        if persons == 0 and start < len(self.plan):
            raise BadImageError(f"none of the images could be read; the first: {self._reason(0)}")

    def __iter__(self) -> Iterator[PackedBatch]:
        return self.epoch(0)

    def _report(self, batch: PackedBatch) -> None:
        """Warns once a file about the persons that a batch lost."""
        self.skipped += len(batch.skipped)
        for row in self.dataset.image_rows[batch.skipped.numpy()].tolist():
            self._last_bad = row
            if row not in self._reported:
                self._reported.add(row)
                warnings.warn(f"{self._reason(row)}. {self.lost} skipped ({self.skipped} so far).", stacklevel=3)
        if len(batch.skipped) and not len(batch):
            what = "is one black picture now" if self.training else "was left out"
            warnings.warn(f"a whole batch {what}: none of its images could be read", stacklevel=3)

    def _reason(self, row: int | None = None) -> str:
        """Why an image (the last bad one) cannot be read. The worker's error does not travel: the file is asked."""
        row = self._last_bad if row is None else row
        try:
            self.dataset.source.load_image(row)
        except BadImageError as error:
            return str(error)
        return f"{self.dataset.source.image_name(row)}: could not be read a moment ago"


def _data_loader(dataset: PackedDataset, plan: BatchPlan, settings: LoaderSettings) -> DataLoader[Any]:
    common: dict[str, Any] = {
        "batch_sampler": plan,
        "collate_fn": _as_is,
        "pin_memory": settings.pin_memory and torch.cuda.is_available(),
    }
    if settings.workers == 0:
        return DataLoader(dataset, num_workers=0, **common)
    # fork shares records and cached images without a copy. It is safe here: workers use neither CUDA nor
    # OpenMP threads (torch gives them one thread, cv2 none).
    method = settings.start_method or ("fork" if os.name == "posix" and os.uname().sysname == "Linux" else None)
    return DataLoader(
        dataset,
        num_workers=settings.workers,
        prefetch_factor=settings.prefetch,
        persistent_workers=True,
        multiprocessing_context=method,
        worker_init_fn=_start_worker,
        **common,
    )


def _start_quietly(loader: DataLoader[Any]) -> Iterator[PackedBatch]:
    """Starts an epoch without torch's SIGCHLD handler.

    The handler reports a killed worker by an exception wherever the main process happens to be, in the middle of
    an update even. Without it the same is said where the next batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return batches


def _as_is(batch: PackedBatch) -> PackedBatch:
    """A collate function for a dataset that already gives batches."""
    return batch


def _start_worker(_: int) -> None:
    """A worker is one thread: OpenCV's pool does not survive a fork, and its threads would fight the others'.

    Signals that stop a run reach its workers too (Ctrl-C in a terminal, Slurm). The main process answers them:
    a worker goes on after SIGINT, and leaves quietly after SIGTERM, by which it may also be asked to end.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
