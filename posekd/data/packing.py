"""What a loader's worker does: decodes the pictures of a batch and packs the bytes that its crops sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from posekd import codecs
from posekd.data.augment import Augmentation, Draw, draw, image_matrices
from posekd.data.images import REDUCTIONS, reduced_size
from posekd.data.records import BadImageError, PoseSource
from posekd.data.sampler import Key
from posekd.data.teacher_maps import TeacherMaps
from posekd.structures import PackedBatch

MARGIN = 2  # pixels around a crop's corners: one for bilinear interpolation, one for rounding


class PackedDataset(Dataset[PackedBatch]):
    """Map-style dataset, fetched a batch at a time: `__getitems__` takes `(epoch, row)` keys and gives one batch.

    Args:
        source: where the images come from.
        image_rows: int64 `[N]`, the image of each row of this dataset.
        on_bad_image: "refuse" or "skip".
        reduced_decode: see `LoaderSettings`.
    """

    def __init__(
        self,
        source: PoseSource,
        image_rows: np.ndarray,
        on_bad_image: Literal["refuse", "skip"],
        reduced_decode: bool = False,
    ) -> None:
        self.source, self.image_rows, self.on_bad_image = source, image_rows, on_bad_image
        self.reduced_decode = reduced_decode

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
        reductions = self.reductions(keys)
        for key in keys:
            image_row = int(self.image_rows[key[1]])
            try:
                if image_row not in images:
                    images[image_row] = self.load_image(image_row, reductions.get(image_row, 1))
                kept.append(key)
            except BadImageError:
                if self.on_bad_image == "refuse":
                    raise
                skipped.append(key[1])
        batch = self.pack(kept, images)
        batch.skipped = torch.tensor(skipped, dtype=torch.int64)
        return batch

    def load_image(self, image_row: int, reduction: int) -> np.ndarray:
        """The source's image, smaller if that is asked for and possible."""
        return self.source.load_image(image_row, reduction) if reduction > 1 else self.source.load_image(image_row)

    def reductions(self, keys: Sequence[Key]) -> dict[int, int]:
        """How much smaller each image (by its row) of some keys may be decoded; the rest is decoded whole."""
        found: dict[int, int] = {}
        for key in keys if self.reduced_decode else ():
            image_row, pixel_size = int(self.image_rows[key[1]]), self.pixel_size(key)
            fitting = max([r for r in REDUCTIONS if r <= pixel_size], default=1)
            found[image_row] = min(fitting, found.get(image_row, fitting))
        return found

    def pixel_size(self, key: Key) -> float:
        """Image pixels a pixel of a key's crop."""
        raise NotImplementedError

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
        reduced_decode: see `LoaderSettings`.
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
        reduced_decode: bool = False,
        padding: float = codecs.PADDING,
        teacher_maps: TeacherMaps | None = None,
    ) -> None:
        super().__init__(source, source.records.image_rows, on_bad_image, reduced_decode)
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

    def pixel_size(self, key: Key) -> float:
        """Image pixels a pixel of the person's crop."""
        drawn = self.draw(key)
        return float(drawn.scale[0]) * drawn.zoom / self.size[1]

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
        pack_regions(batch, list(images.values()), records.image_sizes[list(images)], _crop_corners(batch, self.size))
        return batch


def _crop_corners(batch: PackedBatch, size: tuple[int, int]) -> np.ndarray:
    """Image coordinates of the centres of the crops' corner pixels, float32 `[B, 4, 2]`."""
    bottom, right = size[0] - 1, size[1] - 1
    corners = torch.tensor([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=torch.float32)
    return codecs.transform_keypoints(corners.expand(len(batch), 4, 2), image_matrices(batch, size)).numpy()


def pack_regions(batch: PackedBatch, images: Sequence[np.ndarray], sizes: np.ndarray, corners: np.ndarray) -> None:
    """Copies of each image the rectangle that its crops sample into one flat buffer of `batch`.

    A warp of the region gives what a warp of the image gives: every pixel that a crop reads is inside, or
    outside the image itself.

    Args:
        batch: gets `pixels`, `offsets`, `shapes`, `origins` and `reductions`.
        images: N uint8 `[H, W, C]`, some of them reduced.
        sizes: int64 `[N, 2]`, heights and widths of the whole images.
        corners: `[B, 4, 2]`, the crops' corners in pixels of the whole images.
    """
    index = batch.image_index.numpy()
    reductions = [_reduction(image, size) for image, size in zip(images, sizes.tolist(), strict=True)]
    regions, origins = [], []
    for slot, (image, reduction) in enumerate(zip(images, reductions, strict=True)):
        own = (corners[index == slot].reshape(-1, 2) + 0.5) / reduction - 0.5  # see codecs.reduce_matrices
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
    if max(reductions, default=1) > 1:
        batch.reductions = torch.tensor(reductions, dtype=torch.float32)


def _reduction(image: np.ndarray, size: Sequence[int]) -> int:
    """At which fraction of its size an image was decoded: a source is free to give it whole."""
    return next((r for r in REDUCTIONS if image.shape[:2] == reduced_size(size, r)), 1)
