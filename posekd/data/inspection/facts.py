"""What a labelled dataset holds, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from posekd.data.records import PoseRecords
from posekd.skeleton import DEFAULT_SIGMA, Skeleton

PERCENTILES = (5, 50, 95)
"""Of the box sizes that are shown."""


@dataclass(frozen=True)
class Facts:
    """Counts of a dataset.

    Attributes:
        images: number of images.
        people: number of people (boxes).
        labelled_people: those with a labelled keypoint.
        skeleton: the K keypoints.
        visible: int64 `[K]`, labels of each keypoint with visibility 2.
        occluded: int64 `[K]`, with visibility 1.
        box_sizes: float64 `[3, 2]`, (width, height) of boxes in pixels, at `PERCENTILES`.
        aspects: float64 `[3]`, width over height of boxes, at `PERCENTILES`.
        pairs: names of keypoints that a mirror exchanges.
        pairs_from: how they were found, in words.
        sigmas_from: whose the OKS sigmas are, in words.
        sigmas_guessed: whether nobody has given them.
        left_out: why people of the label file are not among these -> how many.
    """

    images: int
    people: int
    labelled_people: int
    skeleton: Skeleton
    visible: np.ndarray
    occluded: np.ndarray
    box_sizes: np.ndarray
    aspects: np.ndarray
    pairs: tuple[tuple[str, str], ...]
    pairs_from: str
    sigmas_from: str
    sigmas_guessed: bool
    left_out: Mapping[str, int]

    @property
    def labels(self) -> np.ndarray:
        """Labels of each keypoint, int64 `[K]`."""
        return self.visible + self.occluded


def gather_facts(records: PoseRecords, settings: Any = None, *, card: bool = False) -> Facts:
    """Counts what records hold.

    Args:
        records: of an open dataset.
        settings: those of the dataset, which tell whether pairs and sigmas were given.
        card: whether the sigmas are those in a checkpoint's card.
    """
    skeleton = records.skeleton
    seen = records.keypoints[..., 2]
    width, height = records.boxes[:, 2].astype(float), records.boxes[:, 3].astype(float)
    sizes = np.stack((width, height), 1) if len(records) else np.full((1, 2), np.nan)
    ratio = width / np.maximum(height, 1e-9) if len(records) else np.full(1, np.nan)
    names = skeleton.keypoints
    guessed = not card and getattr(settings, "sigmas", None) is None and set(skeleton.sigmas) == {DEFAULT_SIGMA}
    return Facts(
        images=records.num_images,
        people=len(records),
        labelled_people=int((seen > 0).any(1).sum()),
        skeleton=skeleton,
        visible=(seen == 2).sum(0),
        occluded=(seen == 1).sum(0),
        box_sizes=np.percentile(sizes, PERCENTILES, axis=0),
        aspects=np.percentile(ratio, PERCENTILES),
        pairs=tuple((names[k], names[other]) for k, other in enumerate(skeleton.flip) if k < other),
        pairs_from="given (flip_pairs)" if getattr(settings, "flip_pairs", None) else "read from the names",
        sigmas_from=_whose(skeleton, settings, guessed, card),
        sigmas_guessed=guessed,
        left_out=records.left_out,
    )


def _whose(skeleton: Skeleton, settings: Any, guessed: bool, card: bool) -> str:
    if card:
        return "those of the checkpoint"
    if getattr(settings, "sigmas", None) is not None:
        return "given (sigmas)"
    return f"guessed: {DEFAULT_SIGMA} for each" if guessed else f"the usual ones of {skeleton.name}"
