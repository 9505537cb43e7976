"""Training with fewer labels than persons: the labels of some images, or of a second dataset, are not used.

A person without a single labelled keypoint is unlabelled; a method with a teacher may still learn from it
(`method.unlabelled_weight` of fpd and mapd). These classes wrap a dataset, so they work with any dataset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from posekd.data.records import PoseRecords, PoseSource


@dataclass(frozen=True)
class LabelSettings:
    """Which labels of the training data are used.

    Attributes:
        images: number of images that keep their labels, drawn at random.
        others: what happens to the other images: `unlabelled` keeps their persons without labels, `left_out` leaves
            them out.
        seed: seed of the draw. With equal seeds, a smaller number of images is a subset of a larger one.
    """

    images: int
    others: Literal["unlabelled", "left_out"] = "unlabelled"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"labels.images must be 1 or more, got {self.images}")


class FewLabels:
    """A dataset of which some images keep their labels. A `PoseSource`.

    Args:
        source: the dataset.
        settings: how many images keep their labels, and what happens to the others.

    Raises:
        ValueError: there are fewer images than should keep their labels.
    """

    def __init__(self, source: PoseSource, settings: LabelSettings) -> None:
        records = source.records
        if settings.images > records.num_images:
            raise ValueError(f"labels.images is {settings.images}, and the training data have {records.num_images}")
        chosen = np.random.default_rng(settings.seed).permutation(records.num_images)[: settings.images]
        keep = np.isin(records.image_rows, chosen)
        self._source = source
        if settings.others == "left_out":
            self.records = records.take(np.flatnonzero(keep))
            self._images = np.unique(records.image_rows[keep])
        else:
            self._images = np.arange(records.num_images)
            self.records = replace(records, keypoints=np.where(keep[:, None, None], records.keypoints, 0.0))

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes image `row`: uint8 RGB `[H, W, 3]`, as the dataset does."""
        return self._source.load_image(int(self._images[row]), reduction)

    def image_name(self, row: int) -> str:
        """The dataset's name of image `row`."""
        return self._source.image_name(int(self._images[row]))


class WithUnlabelled:
    """A dataset, followed by the persons of another one without their labels. A `PoseSource`.

    The other dataset may have other keypoints: only its images and boxes are used. Ids of both are kept, so they may
    occur twice.

    Args:
        source: the dataset with labels.
        other: the one without.
    """

    def __init__(self, source: PoseSource, other: PoseSource) -> None:
        self._source, self._other = source, other
        unlabelled = np.zeros((len(other.records), *source.records.keypoints.shape[1:]), np.float32)
        self.records: PoseRecords = source.records.join(replace(other.records, keypoints=unlabelled))
        self._first = source.records.num_images

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes image `row`: uint8 RGB `[H, W, 3]`, as its dataset does."""
        source, first = (self._source, 0) if row < self._first else (self._other, self._first)
        return source.load_image(row - first, reduction)

    def image_name(self, row: int) -> str:
        """The datasets' name of image `row`."""
        return self._source.image_name(row) if row < self._first else self._other.image_name(row - self._first)
