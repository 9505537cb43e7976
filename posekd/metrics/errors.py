"""How far keypoints are from their labels, over ALL labelled people: whoever was not found counts as infinitely far.

COCO's table over matched people flatters a network that finds only the easy ones; medians over all do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posekd.metrics.oks import keypoint_similarity

Floats = NDArray[np.float64]

THRESHOLDS = (0.05, 0.1, 0.2)
"""Of PCK, in units of the reference length."""
LEAST_OKS = 0.1
"""Below it no pose is taken for a person's, where nothing else says whose it is."""


@dataclass(frozen=True)
class KeypointError:
    """The distances of one keypoint, or of all together, from their labels.

    Attributes:
        name: of the keypoint; `all` for all together.
        labelled: people who have it labelled (with a reference length).
        missed: those of them who were not found.
        median: the error that half of all labelled do not exceed, in pixels; infinite where more are missed, NaN
            without a label.
        p90: likewise for 90 %.
        median_relative: the median in reference lengths.
        p90_relative: likewise.
        pck: threshold -> share (0..1) within that many reference lengths.
    """

    name: str
    labelled: int
    missed: int
    median: float
    p90: float
    median_relative: float
    p90_relative: float
    pck: Mapping[float, float]


@dataclass(frozen=True)
class ErrorResult:
    """Errors of all keypoints.

    Attributes:
        length: what `relative` and PCK divide by, in words.
        people: labelled people (with a reference length).
        missed: those who were not found.
        total: all keypoints together.
        keypoints: one entry for each of the K keypoints.
    """

    length: str
    people: int
    missed: int
    total: KeypointError
    keypoints: tuple[KeypointError, ...]


@dataclass(frozen=True)
class Found:
    """N labelled people, and the pose that was found of each.

    Attributes:
        names: K keypoint names.
        truth: float64 `[N, K, 3]` (x, y, visibility above 0 where labelled).
        points: float64 `[N, K, 2]`; NaN for people who were not found.
        boxes: float64 `[N, 4]` (x, y, width, height).
        image_ids: `[N]`.
        sample_ids: `[N]`, annotation ids.
        areas: `[N]`, areas of the people in square pixels, as labels give them; None: those of the boxes.
    """

    names: tuple[str, ...]
    truth: Floats
    points: Floats
    boxes: Floats
    image_ids: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    areas: Floats | None = None

    def object_areas(self) -> Floats:
        """The area of each person `[N]`, by which OKS measures."""
        return self.boxes[:, 2:].prod(1) if self.areas is None else self.areas

    def errors(self) -> Floats:
        """Distances `[N, K]` in pixels: infinite where a labelled person was missed, NaN where there is no label."""
        distance = np.linalg.norm(self.points - self.truth[..., :2], axis=-1)
        distance = np.where(np.isfinite(distance), distance, np.inf)
        return np.where(self.truth[..., 2] > 0, distance, np.nan)

    def mean_errors(self) -> Floats:
        """Mean distance of each person's labelled keypoints, in longer sides of the box `[N]`; infinite if missed."""
        labelled = self.truth[..., 2] > 0
        total = np.where(labelled, self.errors(), 0.0).sum(1)
        return total / np.maximum(labelled.sum(1), 1) / self.box_lengths()

    def box_lengths(self) -> Floats:
        """The longer side of each person's box `[N]`, in pixels."""
        return np.maximum(self.boxes[:, 2:].max(1), 1.0)

    def pair_lengths(self, first: str, second: str) -> Floats:
        """The labelled distance of two keypoints `[N]`, in pixels; NaN where one is not labelled, or they coincide.

        Raises:
            ValueError: a name that is not among the keypoints.
        """
        for name in (first, second):
            if name not in self.names:
                raise ValueError(f"{name!r} is not among the keypoints {', '.join(self.names)}")
        a, b = (self.truth[:, self.names.index(name)] for name in (first, second))
        distance = np.linalg.norm(a[:, :2] - b[:, :2], axis=1)
        return np.where((a[:, 2] > 0) & (b[:, 2] > 0) & (distance > 0), distance, np.nan)


def keypoint_errors(found: Found, lengths: Floats, length: str) -> ErrorResult:
    """Medians, 90th percentiles and PCK of each keypoint.

    Args:
        found: the people.
        lengths: `[N]`, reference length of each in pixels; people for whom it is NaN are left out.
        length: what it is, in words.
    """
    kept = np.isfinite(lengths) & (found.truth[..., 2] > 0).any(1)
    errors, scale = found.errors()[kept], lengths[kept, None]
    rows = [_one(name, errors[:, k], scale[:, 0]) for k, name in enumerate(found.names)]
    everything = _one("all", errors.reshape(-1), np.repeat(scale[:, 0], errors.shape[1]))
    missed = int((~np.isfinite(found.points[kept]).all((1, 2))).sum())
    return ErrorResult(length, int(kept.sum()), missed, everything, tuple(rows))


def _one(name: str, errors: Floats, lengths: Floats) -> KeypointError:
    known = ~np.isnan(errors)
    pixels, relative = errors[known], errors[known] / lengths[known]
    count = int(known.sum())
    return KeypointError(
        name=name,
        labelled=count,
        missed=int(np.isinf(pixels).sum()),
        median=_at(pixels, 0.5),
        p90=_at(pixels, 0.9),
        median_relative=_at(relative, 0.5),
        p90_relative=_at(relative, 0.9),
        pck={t: float((relative <= t).mean()) if count else float("nan") for t in THRESHOLDS},
    )


def _at(values: Floats, share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    if not len(values):
        return float("nan")
    return float(np.sort(values)[max(0, int(np.ceil(share * len(values))) - 1)])


def assign(truth: Floats, areas: Floats, poses: Floats, sigmas: Sequence[float]) -> dict[int, int]:
    """Whose a pose is, in one image: the pair of the greatest OKS first, each only once, from `LEAST_OKS` on.

    Args:
        truth: `[P, K, 3]` labelled people.
        areas: `[P]` in square pixels.
        poses: `[D, K, 2 or more]`.
        sigmas: K OKS constants.

    Returns:
        Person -> pose.
    """
    if not len(truth) or not len(poses):
        return {}
    labelled = truth[..., 2] > 0
    each = keypoint_similarity(truth[:, None], poses[None], areas[:, None], sigmas)
    oks = (each * labelled[:, None]).sum(-1) / np.maximum(labelled.sum(-1), 1)[:, None]
    found: dict[int, int] = {}
    for flat in np.argsort(-oks, axis=None, kind="stable"):
        person, pose = divmod(int(flat), len(poses))
        if oks[person, pose] < LEAST_OKS:
            break
        if person not in found and pose not in found.values():
            found[person] = pose
    return found


def bootstrap_pck(
    before: Found, after: Found, threshold: float = 0.1, *, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float, float]:
    """PCK by the box of two networks on the same people, and how certain their difference is: a paired bootstrap over
    the images.

    Args:
        before: what the one has found.
        after: what the other has found, of the same people in the same order.
        threshold: share of the box's longer side.
        samples: number of draws.
        seed: of the draws.

    Returns:
        PCK before, PCK after, and the lower and upper end of the 95 % interval of their difference, all in 0..1.

    Raises:
        ValueError: they are not of the same people.
    """
    if before.sample_ids.tolist() != after.sample_ids.tolist():
        raise ValueError("the two results are not of the same labelled people")
    images, rows = np.unique(before.image_ids, return_inverse=True)
    limit = threshold * before.box_lengths()[:, None]
    labelled = np.zeros(len(images))
    hits = np.zeros((2, len(images)))
    np.add.at(labelled, rows, (before.truth[..., 2] > 0).sum(1))
    for i, one in enumerate((before, after)):
        np.add.at(hits[i], rows, (one.errors() <= limit).sum(1))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(images), size=(samples, len(images)))
    total = np.maximum(labelled[drawn].sum(1), 1)
    gains = (hits[1][drawn].sum(1) - hits[0][drawn].sum(1)) / total
    low, high = np.percentile(gains, (2.5, 97.5))
    first, second = (hits.sum(1) / max(labelled.sum(), 1)).tolist()
    return first, second, float(low), float(high)
