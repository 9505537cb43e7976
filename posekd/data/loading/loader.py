"""From a dataset to packed batches, epoch by epoch. The workers only decode and copy bytes."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import torch
from torch.utils.data import DataLoader

from posekd import geometry
from posekd.data.augment import CropAugmentation, ImageAugmentation
from posekd.data.loading.cache import CachedImages
from posekd.data.loading.crops import CropDataset
from posekd.data.loading.packing import PackedDataset
from posekd.data.loading.sampler import BatchPlan
from posekd.data.loading.teacher_maps import TeacherMaps
from posekd.data.loading.whole_images import ImageDataset, SizePlan
from posekd.data.records import BadImageError, PoseSource
from posekd.structures import Packed

MAX_LOST_BATCHES = 10  # in a row, before an epoch that finds no readable image gives up


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: persons per batch (images, where a network sees whole images), on each process; in a recipe what
            one optimiser step sees, over all processes.
        workers: decoding processes; 0 decodes in the calling process.
        prefetch: batches that each worker keeps ready.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.
        cache_images: keep decoded images in memory (with workers: decoded once, before they start).
        on_bad_image: "refuse" an unreadable image, or "skip" its persons with a counted warning.
        padding: factor by which crops are larger than boxes.
        start_method: how workers start (`fork`, `spawn` or `forkserver`); the platform's usual way if None.
        reduced_decode: in training, decode a JPEG at 1/2, 1/4 or 1/8 of its size where each crop of the batch still
            gets at least one decoded pixel for each of its own. Large people are decoded faster, and look different:
            averaged, where sampling the whole image skips pixels, as published training and every evaluation do
            (these always decode whole images). No effect with `cache_images`.
    """

    batch_size: int = 32
    workers: int = 2
    prefetch: int = 2
    pin_memory: bool = False
    cache_images: bool = False
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    padding: float = geometry.PADDING
    start_method: Literal["fork", "forkserver", "spawn"] | None = None
    reduced_decode: bool = False


class PackedLoader:
    """Packed batches of a dataset, epoch by epoch; made by `crop_loader` or `image_loader`.

    Args:
        dataset: packs the rows of a batch.
        plan: which rows make up which batch.
        settings: workers, and what to do about bad images.
        training: whether a batch that lost all its rows must be replaced.
        lost: what a warning calls the rows that an unreadable image takes with it, e.g. `Its persons are`.

    Attributes:
        skipped: rows left out so far because their image could not be read.
    """

    def __init__(
        self, dataset: PackedDataset, plan: BatchPlan, settings: LoaderSettings, *, training: bool, lost: str
    ) -> None:
        self.dataset, self.plan, self.settings, self.training = dataset, plan, settings, training
        self.skipped = 0
        self._lost = lost
        self._loader = _data_loader(dataset, plan, settings)
        self._reported: set[int] = set()
        self._last_bad = 0
        self._following: tuple[int, int] | None = None
        self._stream: _Stream | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    def follow(self, epochs: int, batches: int) -> None:
        """Says that this many epochs will be asked for, one after the other, and so many batches of each.

        The next epoch's batches are prepared while this one's are used. `epoch` gives what it gives otherwise, and
        from any place, where the workers begin anew: only its end comes after `batches`.
        """
        self._following, self._stream = (epochs, batches), None

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Packed]:
        """Batches of an epoch, from batch `start` on.

        With `on_bad_image` "skip" a batch may be shorter than asked. One that lost all its rows is left out
        of an evaluation; in training one black image without labelled keypoints stands in for it, so that every
        process makes the same number of steps. A warning reports both.

        Raises:
            BadImageError: an image cannot be read and is not to be skipped, or no image of ten batches in a
                row, or of the whole epoch, can be read.
        """
        rows, lost = 0, 0
        for batch in self._batches(epoch, start):
            self._report(batch)
            rows += len(batch)
            lost = 0 if len(batch) else lost + 1
            if lost == MAX_LOST_BATCHES:
                raise BadImageError(f"no image of {lost} batches in a row could be read; the last: {self._reason()}")
            if len(batch):
                yield batch
            elif self.training:
                yield self.dataset.stand_in(epoch, batch.skipped)
        if rows == 0 and start < len(self.plan):
            raise BadImageError(f"none of the images could be read; the first: {self._reason(0)}")

    def _batches(self, epoch: int, start: int) -> Iterator[Packed]:
        """What the workers make of an epoch, from batch `start` on."""
        epochs, end = self._following or (0, 0)
        if epoch >= epochs:
            epochs, end = epoch + 1, len(self.plan)
        stream = self._stream
        if stream is None or (stream.epoch, stream.batch) != (epoch, start):
            self.plan.epoch, self.plan.start, self.plan.last = epoch, start, (epochs, end)
            stream = self._stream = _Stream(_without_traceback(_start_quietly(self._loader)), epoch, start)
        for batch in range(start, end):
            try:
                made = next(stream.batches, None)
            except BaseException:
                self._stream = None
                raise
            if made is None:
                return
            stream.epoch, stream.batch = (epoch, batch + 1) if batch + 1 < end else (epoch + 1, 0)
            if stream.epoch == epochs:
                self._stream = None  # nothing follows
            yield made

    def __iter__(self) -> Iterator[Packed]:
        return self.epoch(0)

    def _report(self, batch: Packed) -> None:
        """Warns once per file about the rows that a batch lost."""
        self.skipped += len(batch.skipped)
        for row in self.dataset.image_rows[batch.skipped.numpy()].tolist():
            self._last_bad = row
            if row not in self._reported:
                self._reported.add(row)
                warnings.warn(f"{self._reason(row)}. {self._lost} skipped ({self.skipped} so far).", stacklevel=3)
        if len(batch.skipped) and not len(batch):
            what = "is one black image now" if self.training else "was left out"
            warnings.warn(f"a whole batch {what}: none of its images could be read", stacklevel=3)

    def _reason(self, row: int | None = None) -> str:
        """Why an image (the last bad one) cannot be read. The worker's error is lost, so the file is read again."""
        row = self._last_bad if row is None else row
        try:
            self.dataset.source.load_image(row)
        except BadImageError as error:
            return str(error)
        return f"{self.dataset.source.image_name(row)}: could not be read a moment ago"


@dataclass
class _Stream:
    """Batches that are being made, and where the next of them stands."""

    batches: Iterator[Packed]
    epoch: int
    batch: int


def crop_loader(
    source: PoseSource,
    size: tuple[int, int],
    settings: LoaderSettings | None = None,
    *,
    training: bool,
    augmentation: CropAugmentation | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    teacher_maps: TeacherMaps | None = None,
    margin: float = 1.0,
) -> PackedLoader:
    """Batches of persons, each with its crop, for top-down networks.

    Args:
        source: the dataset.
        size: `(height, width)` of the crops in pixels.
        settings: batch size, workers, what to do about bad images.
        training: shuffle, augment and drop the incomplete last batch; otherwise every person once, in order.
        augmentation: used in training; None for none.
        seed: seed of shuffling and augmentation.
        rank: this process, in 0..world-1.
        world: number of processes.
        teacher_maps: cached heatmaps of the dataset, to go with the batches.
        margin: factor by which crops show more than `settings.padding` says.
    """
    settings = settings or LoaderSettings()
    if training and augmentation is not None and augmentation.half_body > 0 and not source.records.skeleton.upper_body:
        warnings.warn(
            f"augmentation.half_body is {augmentation.half_body}, but it is not known which keypoints of "
            f"{source.records.skeleton.name!r} are the upper body, so no person "
            "is cropped to half a body: name them (`upper_body`)",
            stacklevel=2,
        )
    dataset = CropDataset(
        _cached(source, settings),
        size,
        augmentation=augmentation if training else None,
        seed=seed,
        on_bad_image=settings.on_bad_image,
        reduced_decode=settings.reduced_decode and training,
        padding=settings.padding,
        margin=margin,
        teacher_maps=teacher_maps,
    )
    plan = BatchPlan(
        len(dataset), settings.batch_size, shuffle=training, drop_last=training, seed=seed, rank=rank, world=world
    )
    return PackedLoader(dataset, plan, settings, training=training, lost="Its persons are")


def image_loader(
    source: PoseSource,
    size: tuple[int, int],
    settings: LoaderSettings | None = None,
    *,
    training: bool,
    augmentation: ImageAugmentation | None = None,
    size_class: Callable[[int, int], Any] = lambda height, width: (height, width),
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> PackedLoader:
    """Batches of whole images with all their people.

    Args:
        source: the dataset.
        size: `(height, width)` of the training crops in pixels.
        settings: batch size (images), workers, what to do about bad images.
        training: shuffle, augment and drop the incomplete last batch; otherwise every image once, in batches of one
            size class.
        augmentation: used in training; None takes the square in the middle, as it is.
        size_class: for evaluation, maps an image's height and width to a value that the images of a batch share.
        seed: seed of shuffling and augmentation.
        rank: this process, in 0..world-1.
        world: number of processes.
    """
    settings = settings or LoaderSettings()
    if training and augmentation is None:
        augmentation = ImageAugmentation(flip=0.0, rotation=0.0, scale=(1.0, 1.0), translation=0.0)
    dataset = ImageDataset(
        _cached(source, settings),
        size,
        augmentation=augmentation if training else None,
        seed=seed,
        on_bad_image=settings.on_bad_image,
        reduced_decode=settings.reduced_decode and training,
    )
    plan: BatchPlan
    if training:
        plan = BatchPlan(
            len(dataset), settings.batch_size, shuffle=True, drop_last=True, seed=seed, rank=rank, world=world
        )
    else:
        sizes = source.records.image_sizes.tolist()
        plan = SizePlan([size_class(height, width) for height, width in sizes], settings.batch_size, rank, world)
    return PackedLoader(dataset, plan, settings, training=training, lost="The image is")


def _cached(source: PoseSource, settings: LoaderSettings) -> PoseSource:
    """The dataset, with its decoded images in memory if the settings ask for that."""
    if not settings.cache_images:
        return source
    cached = CachedImages(source)
    if settings.workers > 0:  # decoded once, before the workers start
        cached.fill(skip_bad=settings.on_bad_image == "skip")
    return cached


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


def _start_quietly(loader: DataLoader[Any]) -> Iterator[Packed]:
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


def _without_traceback(batches: Iterator[Packed]) -> Iterator[Packed]:
    """The batches; an unreadable image is reported in its own sentence, which torch wraps in a worker's traceback."""
    try:
        yield from batches
    except BadImageError as error:
        raise BadImageError(str(error).rsplit(f"{BadImageError.__name__}: ", 1)[-1].strip()) from None


def _as_is(batch: Packed) -> Packed:
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
