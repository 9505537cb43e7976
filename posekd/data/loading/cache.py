"""Decoded images kept in memory, for datasets that fit."""

from __future__ import annotations

import os

import numpy as np

from posekd.data.records import BadImageError, PoseRecords, PoseSource


class CachedImages:
    """A `PoseSource` that decodes each image once.

    Args:
        source: the dataset to remember.

    Raises:
        MemoryError: the decoded images would take more than half of the machine's memory.
    """

    def __init__(self, source: PoseSource) -> None:
        self._source = source
        self._images: dict[int, np.ndarray] = {}
        self.records: PoseRecords = source.records
        need = int(self.records.image_sizes.prod(1).sum()) * 3
        have = _physical_memory()
        if have is not None and need > have / 2:
            raise MemoryError(
                f"cache_images: {self.records.num_images} decoded images need {need / 2**30:.1f} GiB, more than "
                f"half of the {have / 2**30:.1f} GiB of this machine; turn it off"
            )

    def fill(self, *, skip_bad: bool = False) -> None:
        """Decodes all images now, so that forked workers share them."""
        for row in range(self.records.num_images):
            try:
                self.load_image(row)
            except BadImageError:
                if not skip_bad:
                    raise

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Image `row`, always whole, uint8 RGB `[H, W, 3]`; do not write to it."""
        image = self._images.get(row)
        if image is None:
            image = self._images[row] = self._source.load_image(row)
        return image

    def image_name(self, row: int) -> str:
        """The source's name of image `row`."""
        return self._source.image_name(row)


def _physical_memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
