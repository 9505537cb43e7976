"""What a loader's worker does: decodes the images of a batch and packs the bytes that its crops sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from posekd.data.images import REDUCTIONS, reduced_size
from posekd.data.loading.sampler import Key
from posekd.data.records import BadImageError, PoseSource
from posekd.structures import Packed, Pixels

MARGIN = 2  # pixels around a crop's corners: one for bilinear interpolation, one for rounding


class PackedDataset(Dataset[Packed]):
    """Map-style dataset, fetched batch by batch: `__getitems__` takes `(epoch, row)` keys and gives one batch.

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

    def __getitem__(self, key: Key) -> Packed:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Packed:
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
        """The source's image, decoded smaller if requested and possible."""
        return self.source.load_image(image_row, reduction) if reduction > 1 else self.source.load_image(image_row)

    def reductions(self, keys: Sequence[Key]) -> dict[int, int]:
        """The factor by which each image (by its row) of some keys may be decoded smaller; others are decoded whole."""
        found: dict[int, int] = {}
        for key in keys if self.reduced_decode else ():
            image_row, pixel_size = int(self.image_rows[key[1]]), self.pixel_size(key)
            fitting = max([r for r in REDUCTIONS if r <= pixel_size], default=1)
            found[image_row] = min(fitting, found.get(image_row, fitting))
        return found

    def pixel_size(self, key: Key) -> float:
        """Image pixels per pixel of a key's crop."""
        raise NotImplementedError

    def pack(self, keys: Sequence[Key], images: dict[int, np.ndarray]) -> Packed:
        """The batch of some keys, given the images of their rows, each once."""
        raise NotImplementedError

    def stand_in(self, epoch: int, skipped: torch.Tensor) -> Packed:
        """One black image without labelled keypoints, in place of a batch whose rows were all `skipped`."""
        row = int(skipped[0])
        image_row = int(self.image_rows[row])
        height, width = self.source.records.image_sizes[image_row].tolist()
        batch = self.pack([(epoch, row)], {image_row: np.zeros((height, width, 3), np.uint8)})
        batch.keypoints, batch.skipped = torch.zeros_like(batch.keypoints), skipped
        return batch


def pack_regions(images: Sequence[np.ndarray], sizes: np.ndarray, index: np.ndarray, corners: np.ndarray) -> Pixels:
    """Copies of each image the rectangle that its crops sample into one flat buffer.

    A warp of the region gives what a warp of the image gives: every pixel that a crop reads is inside, or
    outside the image itself.

    Args:
        images: N uint8 `[H, W, C]`, some of them reduced.
        sizes: int64 `[N, 2]`, heights and widths of the whole images.
        index: int64 `[B]`, image of each crop.
        corners: `[B, 4, 2]`, the crops' corners in pixels of the whole images.
    """
    reductions = [_reduction(image, size) for image, size in zip(images, sizes.tolist(), strict=True)]
    regions, origins = [], []
    for slot, (image, reduction) in enumerate(zip(images, reductions, strict=True)):
        own = (corners[index == slot].reshape(-1, 2) + 0.5) / reduction - 0.5  # see geometry.reduce_matrices
        limit = np.array([image.shape[1], image.shape[0]])
        # At least one pixel: a crop may lie beyond the image altogether.
        low = np.clip(np.floor(own.min(0)).astype(np.int64) - MARGIN, 0, limit - 1)
        high = np.clip(np.ceil(own.max(0)).astype(np.int64) + MARGIN + 1, low + 1, limit)
        regions.append(image[low[1] : high[1], low[0] : high[0]])
        origins.append(low)
    packed = pack_pixels(regions, np.array(origins, np.float32), index)
    if max(reductions, default=1) > 1:
        packed.reductions = torch.tensor(reductions, dtype=torch.float32)
    return packed


def pack_pixels(regions: Sequence[np.ndarray], origins: np.ndarray, index: np.ndarray) -> Pixels:
    """Copies regions into one flat buffer.

    Args:
        regions: N uint8 `[h, w, C]`.
        origins: float32 `[N, 2]`, (x, y) of each region's corner in its image.
        index: int64 `[B]`, region of each crop.
    """
    sizes = np.array([region.size for region in regions], np.int64)
    ends = np.cumsum(sizes)
    data = np.empty(int(sizes.sum()), np.uint8)
    for region, start, end in zip(regions, ends - sizes, ends, strict=True):
        data[start:end].reshape(region.shape)[...] = region
    return Pixels(
        data=torch.from_numpy(data),
        offsets=torch.from_numpy(ends - sizes),
        shapes=torch.tensor([region.shape for region in regions], dtype=torch.int64).reshape(-1, 3),
        origins=torch.from_numpy(origins.reshape(-1, 2)),
        index=torch.from_numpy(index),
    )


def _reduction(image: np.ndarray, size: Sequence[int]) -> int:
    """The factor by which an image was decoded smaller; a source may always give it whole."""
    return next((r for r in REDUCTIONS if image.shape[:2] == reduced_size(size, r)), 1)
