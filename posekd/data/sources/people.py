"""People in image files: their records, and the paths of the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posekd.data.images import image_size, read_rgb
from posekd.data.records import BadImageError, PoseRecords


@dataclass
class PeopleInFiles:
    """A `PoseSource` of image files.

    Attributes:
        records: the people.
        files: path of each of the records' images.
        to_mat: makes the variables of the dataset's prediction file (`.mat`) from sample ids `[P]` and keypoints
            `[P, K, 2]` in pixels that count from 0.
        apply_orientation: images are turned as their EXIF tags say; `image_sizes` is told the same.
    """

    records: PoseRecords
    files: list[str]
    to_mat: Callable[[np.ndarray, np.ndarray], dict[str, Any]]
    apply_orientation: bool = False

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes image `row`, a JPEG smaller if asked for: uint8 RGB `[H, W, 3]`."""
        height, width = self.records.image_sizes[row].tolist()
        if reduction == 1 or not height:  # the header could not be read when the dataset was opened
            return read_rgb(self.files[row], apply_orientation=self.apply_orientation)
        return read_rgb(self.files[row], (height, width), reduction, self.apply_orientation)

    def image_name(self, row: int) -> str:
        """Path of image `row`."""
        return self.files[row]


def image_sizes(files: Sequence[str], apply_orientation: bool = False) -> np.ndarray:
    """Height and width of image files, int64 `[M, 2]`; 0, 0 for those that cannot be read (the loader says so)."""
    sizes = []
    for file in files:
        try:
            sizes.append(image_size(file, apply_orientation))
        except BadImageError:
            sizes.append((0, 0))
    return np.array(sizes, np.int64).reshape(-1, 2)
