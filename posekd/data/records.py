"""The interface between datasets and the loader: plain facts about persons, and a way to read images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np

from posekd.skeleton import Skeleton


class BadImageError(RuntimeError):
    """An image that is missing, unreadable, truncated, or not the size that its labels state."""


IMAGE_FIELDS = ("image_ids", "image_sizes", "videos")
"""The arrays of `PoseRecords` that have a row for each image; the others have one for each person."""


@dataclass(frozen=True)
class Regions:
    """Regions of images that losses ignore: crowds, and people without labelled keypoints.

    Plain arrays, as in `PoseRecords`; regions of one image stand next to each other.

    Attributes:
        image_rows: int64 `[R]`, row of each region's image.
        ends: int64 `[R]`, where each region ends in `runs`.
        runs: uint8, the regions as COCO's compressed run lengths, one after another.
    """

    image_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    runs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __len__(self) -> int:
        return len(self.image_rows)

    def take(self, images: np.ndarray) -> Regions:
        """The regions of some images, given by their rows in rising order; they are renumbered from 0."""
        keep = np.flatnonzero(np.isin(self.image_rows, images))
        runs = np.split(self.runs, self.ends[:-1])
        kept = [runs[i] for i in keep]
        ends = np.cumsum([len(run) for run in kept], dtype=np.int64)
        return Regions(np.searchsorted(images, self.image_rows[keep]), ends, np.concatenate([self.runs[:0], *kept]))


@dataclass(frozen=True)
class PoseRecords:
    """Undecoded facts about N persons in M images; plain arrays, so that worker processes share them.

    Persons of one image stand next to each other. Coordinates are pixels of the stored image.

    Attributes:
        skeleton: the K keypoints.
        image_ids: int64 `[M]`.
        image_sizes: int64 `[M, 2]`, stated height and width.
        image_rows: int64 `[N]`, row of each person's image in the two arrays above.
        keypoints: float32 `[N, K, 3]` (x, y, visibility 0 unlabelled, 1 occluded, 2 visible).
        boxes: float32 `[N, 4]` (x, y, width, height).
        box_scores: float32 `[N]`, detector confidence (1 for labelled boxes).
        sample_ids: int64 `[N]`, annotation id, or the detection's row in its file.
        exact_boxes: bool `[N]`, boxes that are crops already (LSP's whole images): no padding enlarges them. None
            for none.
        outlines: float32 `[N, V, 2]`, points that bound each person in V directions (`data.outlines`); None where only
            boxes are known.
        ignored: regions that bottom-up training ignores.
        metrics: names of the dataset's metrics (`engine.scoring.METRICS`); the first decides which network is the best.
        reference_lengths: float64 `[N]`, what PCK divides by, in pixels; NaN where it is not known. None where no
            metric asks for it.
        first_pixel: the coordinate that the dataset's own files give the first pixel. (Records count from 0.)
        stated_boxes: float32 `[N, 4]`, the boxes as the label file states them, before they were clipped to the image;
            None where they are those of `boxes`.
        left_out: why people of the label file are not among the N -> how many.
        videos: int64 `[M]`, the video of each image, whose frames stand next to each other in their order; people are
            then followed over them. None for images that do not belong together.
    """

    skeleton: Skeleton
    image_ids: np.ndarray
    image_sizes: np.ndarray
    image_rows: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    box_scores: np.ndarray
    sample_ids: np.ndarray
    exact_boxes: np.ndarray | None = None
    outlines: np.ndarray | None = None
    ignored: Regions = field(default_factory=Regions)
    metrics: tuple[str, ...] = ("coco_keypoints",)
    reference_lengths: np.ndarray | None = None
    first_pixel: int = 0
    stated_boxes: np.ndarray | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    videos: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_rows)

    def take(self, persons: np.ndarray) -> PoseRecords:
        """The records of some persons, with their images and no others.

        Args:
            persons: int64 `[P]`, rows; persons of one image next to each other.
        """
        images, image_rows = np.unique(self.image_rows[persons], return_inverse=True)
        changes: dict[str, Any] = {
            name: array[images if name in IMAGE_FIELDS else persons] for name, array in self._arrays().items()
        }
        changes |= {"image_rows": image_rows.astype(np.int64), "ignored": self.ignored.take(images)}
        return replace(self, **changes)

    def join(self, other: PoseRecords) -> PoseRecords:
        """These records followed by `other`'s, with as many keypoints; facts that `other` lacks are dropped."""
        theirs = {**other._arrays(), "image_rows": other.image_rows + self.num_images}
        exact = np.concatenate((self.are_exact(), other.are_exact()))
        changes: dict[str, Any] = {
            name: np.concatenate((array, theirs[name])) if name in theirs else None
            for name, array in self._arrays().items()
        }
        return replace(self, **{**changes, "exact_boxes": exact if exact.any() else None})

    def are_exact(self) -> np.ndarray:
        """Whether each box is a crop already, bool `[N]`."""
        return np.zeros(len(self), bool) if self.exact_boxes is None else self.exact_boxes

    def _arrays(self) -> dict[str, np.ndarray]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.image_ids)


class PoseSource(Protocol):
    """The one interface of all datasets.

    `CocoKeypoints` reads files, `SyntheticPeople` draws; the loader treats both alike.
    """

    records: PoseRecords

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes image `row`: uint8 RGB `[H, W, 3]`; at 1/2, 1/4 or 1/8 of its size if asked for and possible.

        Raises:
            BadImageError: naming the file.
        """

    def image_name(self, row: int) -> str:
        """Name of image `row` for messages."""


class CocoSource(PoseSource, Protocol):
    """A dataset with labels in COCO's form."""

    def coco_ground_truth(self) -> dict[str, Any]:
        """The labels as a COCO dictionary (`images`, `annotations`, `categories`), for the evaluator.

        Where people were labelled and have no crop, `uncropped` is the list of their annotation ids.
        """
