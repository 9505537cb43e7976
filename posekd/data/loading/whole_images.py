"""Whole images with all their people, packed by a loader's worker, and which of them share a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from posekd import geometry
from posekd.data.augment import ImageAugmentation, ImageDraw, draw_image
from posekd.data.loading.packing import PackedDataset, pack_pixels, pack_regions
from posekd.data.loading.sampler import BatchPlan, Key
from posekd.data.photometric import looks_of
from posekd.data.records import PoseSource
from posekd.data.regions import decode_mask
from posekd.structures import PackedImageBatch, Pixels


class ImageDataset(PackedDataset):
    """Whole images with all their people.

    Args:
        source: the dataset.
        size: `(height, width)` of the network's input; `side` pixels of an image fill its shorter side.
        augmentation: None for evaluation, which takes the images as they are, with all their pixels.
        seed: of the draws, each of which depends on (seed, epoch, row) alone.
        on_bad_image: "refuse" or "skip".
        reduced_decode: see `LoaderSettings`.
    """

    def __init__(
        self,
        source: PoseSource,
        size: tuple[int, int],
        *,
        augmentation: ImageAugmentation | None = None,
        seed: int = 0,
        on_bad_image: Literal["refuse", "skip"] = "refuse",
        reduced_decode: bool = False,
    ) -> None:
        records = source.records
        super().__init__(source, np.arange(records.num_images), on_bad_image, reduced_decode)
        self.size, self.augmentation, self.seed = size, augmentation, seed
        # people of image i are rows first[i] to first[i + 1]
        self._first = np.searchsorted(records.image_rows, np.arange(records.num_images + 1))

    def draw(self, key: Key) -> ImageDraw:
        """The augmentation of one image."""
        epoch, row = key
        height, width = self.source.records.image_sizes[row].tolist()
        if self.augmentation is None:
            return ImageDraw((width / 2, height / 2), min(height, width), 0.0, False)
        rng = np.random.default_rng([self.seed, epoch, row])
        return draw_image(self.augmentation, rng, height, width)

    def pixel_size(self, key: Key) -> float:
        """Image pixels per pixel of the network's input."""
        return self.draw(key).side / min(self.size)

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> PackedImageBatch:
        """The images of `keys`: of each the rectangle that its crop samples, its people and its ignored regions."""
        records = self.source.records
        rows = np.array([row for _, row in keys], np.int64)
        draws = [self.draw(key) for key in keys]
        B, unit = len(rows), min(self.size)
        batch = PackedImageBatch(
            pixels=Pixels.none(3),
            keypoints=self._padded(rows, self.source.records.keypoints),
            centers=torch.tensor([d.center for d in draws], dtype=torch.float32).reshape(-1, 2),
            scales=torch.tensor([[d.side * s / unit for s in self.size[::-1]] for d in draws]).reshape(-1, 2),
            rotations=torch.tensor([d.rotation for d in draws], dtype=torch.float32),
            flips=torch.tensor([d.flip for d in draws], dtype=torch.bool),
            image_ids=torch.from_numpy(records.image_ids[rows]),
            image_sizes=torch.from_numpy(records.image_sizes[rows]),
            outlines=self._padded(rows, self._outlines()),
        )
        sizes = records.image_sizes[rows]
        batch.pixels = pack_regions([images[row] for row in rows.tolist()], sizes, np.arange(B), self._corners(batch))
        if self.augmentation is not None:
            batch.looks = looks_of(self.augmentation.photometric, self.seed, keys)
            batch.masks, batch.mask_rows = _pack_masks([self._mask(row) for row in rows.tolist()])
        return batch

    def _outlines(self) -> np.ndarray:
        """The points that bound people, `[N, V, 2]`: at least the corners of their boxes."""
        records = self.source.records
        if records.outlines is not None:
            return records.outlines
        low, high = records.boxes[:, :2], records.boxes[:, :2] + records.boxes[:, 2:]
        corners = (low, high, np.stack((low[:, 0], high[:, 1]), 1), np.stack((high[:, 0], low[:, 1]), 1))
        return np.stack(corners, 1)

    def _padded(self, rows: np.ndarray, facts: np.ndarray) -> Tensor:
        """Facts about N people `[N, ...]` as those of the people of each image `[B, P, ...]`, padded with zeros."""
        groups = [facts[self._first[row] : self._first[row + 1]] for row in rows]
        padded = np.zeros((len(rows), max([1, *map(len, groups)]), *facts.shape[1:]), np.float32)
        for out, group in zip(padded, groups, strict=True):
            out[: len(group)] = group
        return torch.from_numpy(padded)

    def _corners(self, batch: PackedImageBatch) -> np.ndarray:
        """Corners of the sampled part of each image, `[B, 4, 2]` in its pixels: the crop, or the whole image."""
        if self.augmentation is None:
            bottom, right = (batch.image_sizes - 1).float().unbind(1)
            zero = torch.zeros_like(right)
            return torch.stack([zero, zero, right, zero, zero, bottom, right, bottom], 1).view(-1, 4, 2).numpy()
        bottom_pixel, right_pixel = self.size[0] - 1.0, self.size[1] - 1.0
        corners = torch.tensor(
            [[0.0, 0.0], [right_pixel, 0.0], [0.0, bottom_pixel], [right_pixel, bottom_pixel]], dtype=torch.float32
        )
        return geometry.transform_keypoints(corners.expand(len(batch), 4, 2), batch.matrices(self.size)).numpy()

    def _mask(self, row: int) -> np.ndarray | None:
        records = self.source.records
        height, width = records.image_sizes[row].tolist()
        return decode_mask(records.ignored, row, (height, width))


def _pack_masks(masks: Sequence[np.ndarray | None]) -> tuple[Pixels, Tensor]:
    """The bounding rectangles of ignored regions, packed, and the row of the image that each belongs to."""
    pieces, origins, rows = [], [], []
    for row, mask in enumerate(masks):
        if mask is None or not mask.any():
            continue
        lines, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        pieces.append(mask[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1, None])
        origins.append((columns[0], lines[0]))
        rows.append(row)
    if not pieces:
        return Pixels.none(1), torch.empty(0, dtype=torch.int64)
    return pack_pixels(pieces, np.array(origins, np.float32), np.arange(len(pieces))), torch.tensor(rows)


class SizePlan(BatchPlan):
    """Batches of images that share a size class, each image once, in the order of the first of its class.

    Args:
        classes: one hashable value per image: images of equal values may share a batch.
        batch_size: images per batch, on each rank.
        rank: this process, in 0..world-1; batches are dealt to the ranks in turn.
        world: number of processes.
    """

    def __init__(self, classes: Sequence[Any], batch_size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(len(classes), batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        groups: dict[Any, list[int]] = {}
        for row, kind in enumerate(classes):
            groups.setdefault(kind, []).append(row)
        batches = [g[i : i + batch_size] for g in groups.values() for i in range(0, len(g), batch_size)]
        self._batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, epoch: int, step: int) -> list[Key]:
        """Keys of one batch of this rank."""
        return [(epoch, row) for row in self._batches[step]]

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, len(self)):
            yield self.batch(self.epoch, step)
