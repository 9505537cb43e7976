"""What every dataset is to the loader: plain facts about persons, and a way to their pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from posekd.skeleton import Skeleton


class BadImageError(RuntimeError):
    """An image that is missing, unreadable, truncated, or not the size that its labels state."""


@dataclass(frozen=True)
class Regions:
    """Regions of images that no loss may look at: crowds, and people without labelled joints.

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
        ignored: regions that bottom-up training must not look at.
        metric: what the dataset is scored by: COCO's AP, PCK by head size (MPII) or by torso (LSP).
        reference_lengths: float64 `[N]`, what PCK divides by, in pixels; NaN where it is not known. None under `coco`.
    """

    skeleton: Skeleton
    image_ids: np.ndarray
    image_sizes: np.ndarray
    image_rows: np.ndarray
    keypoints: np.ndarray
    boxes: np.ndarray
    box_scores: np.ndarray
    sample_ids: np.ndarray
    ignored: Regions = field(default_factory=Regions)
    metric: Literal["coco", "pckh", "pck"] = "coco"
    reference_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image_rows)

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.image_ids)


class PoseSource(Protocol):
    """The one interface of all datasets.

    `CocoKeypoints` reads files, `SyntheticPeople` draws; the loader cannot tell them apart.
    """

    records: PoseRecords

    def load_image(self, row: int) -> np.ndarray:
        """Decodes image `row`: uint8 RGB `[H, W, 3]`.

        Raises:
            BadImageError: naming the file.
        """

    def image_name(self, row: int) -> str:
        """What to call image `row` in a message."""


class CocoSource(PoseSource, Protocol):
    """A dataset that COCO's AP scores (`records.metric` is `coco`)."""

    def coco_ground_truth(self) -> dict[str, Any]:
        """The labels as a COCO dictionary (`images`, `annotations`, `categories`), for the evaluator."""
