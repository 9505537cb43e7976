"""From a dataset to packed batches: workers decode and copy bytes, nothing else."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from posekd import codecs
from posekd.data.augment import Augmentation, Draw, draw, image_matrices
from posekd.data.cache import CachedImages
from posekd.data.records import BadImageError, PoseSource
from posekd.data.sampler import BatchPlan, Key
from posekd.data.teacher_maps import TeacherMaps
from posekd.structures import PackedBatch

MAX_LOST_BATCHES = 10  # in a row, before an epoch that finds no readable image gives up
MARGIN = 2  # pixels around a crop's corners: one for bilinear interpolation, one for rounding


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
    """

    batch_size: int = 32
    workers: int = 2
    prefetch: int = 2
    pin_memory: bool = False
    cache_images: bool = False
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    padding: float = codecs.PADDING
    start_method: Literal["fork", "forkserver", "spawn"] | None = None


class PackedDataset(Dataset[PackedBatch]):
    """Map-style dataset, fetched a batch at a time: `__getitems__` takes `(epoch, row)` keys and gives one batch.

    Args:
        source: where the images come from.
        image_rows: int64 `[N]`, the image of each row of this dataset.
        on_bad_image: "refuse" or "skip".
    """

    def __init__(self, source: PoseSource, image_rows: np.ndarray, on_bad_image: Literal["refuse", "skip"]) -> None:
        self.source, self.image_rows, self.on_bad_image = source, image_rows, on_bad_image

    def __len__(self) -> int:
        return len(self.image_rows)

    def __getitem__(self, key: Key) -> PackedBatch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> PackedBatch:
        """The rows of `keys`; those whose image cannot be read are missing if `on_bad_image` is "skip".

        Raises:
            BadImageError: an image cannot be read and `on_bad_image` is "refuse".
        """
        images: dict[int, np.ndarray] = {}
        kept: list[Key] = []
        skipped = []
        for key in keys:
            image_row = int(self.image_rows[key[1]])
            try:
                if image_row not in images:
                    images[image_row] = self.source.load_image(image_row)
                kept.append(key)
            except BadImageError:
                if self.on_bad_image == "refuse":
                    raise
                skipped.append(key[1])
        batch = self.pack(kept, images)
        batch.skipped = torch.tensor(skipped, dtype=torch.int64)
        return batch

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> PackedBatch:
        """The batch of some keys, given the images of their rows, each once."""
        raise NotImplementedError

    def stand_in(self, epoch: int, skipped: torch.Tensor) -> PackedBatch:
        """One black picture without labelled joints, instead of a batch that lost all its rows, the `skipped`."""
        row = int(skipped[0])
        image_row = int(self.image_rows[row])
        height, width = self.source.records.image_sizes[image_row].tolist()
        batch = self.pack([(epoch, row)], {image_row: np.zeros((height, width, 3), np.uint8)})
        batch.keypoints, batch.skipped = torch.zeros_like(batch.keypoints), skipped
        batch.teacher_maps, batch.teacher_ranges = map(torch.zeros_like, (batch.teacher_maps, batch.teacher_ranges))
        return batch


class PersonDataset(PackedDataset):
    """Persons, each with a crop of its image: each image once, and of it only what the crops of the batch sample.

    An augmentation draw depends on (seed, epoch, row) alone.

    Args:
        source: the dataset.
        size: `(height, width)` of the crops.
        augmentation: None for evaluation.
        seed: of the draws.
        on_bad_image: "refuse" or "skip".
        padding: factor by which crops are larger than boxes.
        teacher_maps: cached heatmaps of the dataset, to go with the batches.
    """

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        padding: float = codecs.PADDING,
        teacher_maps: TeacherMaps | None = None,
    ) -> None:
        super().__init__(source, source.records.image_rows, on_bad_image)
        self.size, self.augmentation, self.seed = size, augmentation, seed
        self.teacher_maps = teacher_maps
        centers, scales = codecs.box_to_center_scale(torch.from_numpy(source.records.boxes), size, padding)
        self._centers, self._scales = centers.numpy(), scales.numpy()

    def draw(self, key: Key) -> Draw:
        """The augmentation of one sample."""
        epoch, row = key
        center, scale = self._centers[row], self._scales[row]
        if self.augmentation is None:
            return Draw(center, scale)
        records = self.source.records
        rng = np.random.default_rng([self.seed, epoch, row])
        keypoints = records.keypoints[row]
        return draw(self.augmentation, rng, center, scale, keypoints, self.size, records.skeleton.upper_body)

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> PackedBatch:
        """The persons of `keys`, and what their crops sample."""
        records = self.source.records
        rows = np.array([row for _, row in keys], np.int64)
        draws = [self.draw(key) for key in keys]
        slots = {image_row: slot for slot, image_row in enumerate(images)}
        batch = PackedBatch(
            pixels=torch.empty(0, dtype=torch.uint8),
            offsets=torch.zeros(0, dtype=torch.int64),
            shapes=torch.zeros(0, 3, dtype=torch.int64),
            origins=torch.zeros(0, 2),
            image_index=torch.tensor([slots[int(records.image_rows[row])] for row in rows], dtype=torch.int64),
            keypoints=torch.from_numpy(records.keypoints[rows]),
            centers=torch.from_numpy(np.array([d.center for d in draws], np.float32).reshape(-1, 2)),
            scales=torch.from_numpy(np.array([d.scale for d in draws], np.float32).reshape(-1, 2)),
            rotations=torch.tensor([d.rotation for d in draws], dtype=torch.float32),
            zooms=torch.tensor([d.zoom for d in draws], dtype=torch.float32),
            flips=torch.tensor([d.flip for d in draws], dtype=torch.bool),
            boxes=torch.from_numpy(records.boxes[rows]),
            box_scores=torch.from_numpy(records.box_scores[rows]),
            image_ids=torch.from_numpy(records.image_ids[records.image_rows[rows]]),
            sample_ids=torch.from_numpy(records.sample_ids[rows]),
        )
        if self.teacher_maps is not None and len(rows):
            batch.teacher_maps, batch.teacher_ranges = self.teacher_maps.read(rows)
            batch.teacher_matrices = self.teacher_maps.matrices(records.boxes[rows])
        corners = _crop_corners(batch, self.size)
        pack_regions(batch, list(images.values()), corners)
        return batch


def _crop_corners(batch: PackedBatch, size: tuple[int, int]) -> np.ndarray:
    """Image coordinates of the centres of the crops' corner pixels, float32 `[B, 4, 2]`."""
    bottom, right = size[0] - 1, size[1] - 1
    corners = torch.tensor([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=torch.float32)
    return codecs.transform_keypoints(corners.expand(len(batch), 4, 2), image_matrices(batch, size)).numpy()


def pack_regions(batch: PackedBatch, images: Sequence[np.ndarray], corners: np.ndarray) -> None:
    """Copies of each image the rectangle that its crops sample into one flat buffer of `batch`.

    A warp of the region gives what a warp of the image gives: every pixel that a crop reads is inside, or
    outside the image itself.

    Args:
        batch: gets `pixels`, `offsets`, `shapes` and `origins`.
        images: N uint8 `[H, W, C]`.
        corners: `[B, 4, 2]`, the crops' corners in image pixels.
    """
    index = batch.image_index.numpy()
    regions, origins = [], []
    for slot, image in enumerate(images):
        own = corners[index == slot].reshape(-1, 2)
        limit = np.array([image.shape[1], image.shape[0]])
        # At least one pixel: a crop may lie beyond the image altogether.
        low = np.clip(np.floor(own.min(0)).astype(np.int64) - MARGIN, 0, limit - 1)
        high = np.clip(np.ceil(own.max(0)).astype(np.int64) + MARGIN + 1, low + 1, limit)
        regions.append(image[low[1] : high[1], low[0] : high[0]])
        origins.append(low)
    sizes = np.array([region.size for region in regions], np.int64)
    ends = np.cumsum(sizes)
    pixels = np.empty(int(sizes.sum()), np.uint8)
    for region, start, end in zip(regions, ends - sizes, ends, strict=True):
        pixels[start:end].reshape(region.shape)[...] = region
    batch.pixels = torch.from_numpy(pixels)
    batch.offsets = torch.from_numpy(ends - sizes)
    batch.shapes = torch.tensor([region.shape for region in regions], dtype=torch.int64).reshape(-1, 3)
    batch.origins = torch.from_numpy(np.array(origins, np.float32).reshape(-1, 2))


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
        settings = self.settings
        return PersonDataset(
            source,
            size,
            augmentation=augmentation,
            seed=seed,
            on_bad_image=settings.on_bad_image,
            padding=settings.padding,
            teacher_maps=self.teacher_maps,
        )

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
