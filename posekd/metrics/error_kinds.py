"""Kinds of localisation errors, as in the COCO error analysis (Ronchi and Perona, ICCV 2017, section 3.1).

With the similarity `ks` of a keypoint that was found to a labelled one, `exp(-d^2 / (2 area (2 sigma)^2))`:

    good       ks to its own label is 0.85 or more
    jitter     0.5 to 0.85
    inversion  below 0.5, and 0.5 or more to the label of its mirror partner of the same person
    swap       below 0.5, and 0.5 or more to the label of it or its mirror partner of another person
    miss       none of these: it is near nothing that it could be

`Semantically similar` parts, which the paper's inversion and swap confuse, are mirror partners (the authors' code too).
Where inversion and swap both hold, the larger similarity decides. Beside these, keypoints of people of whom no pose was
found at all are `not found`; the paper's analysis has only matched people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posekd.metrics.errors import Floats, Found
from posekd.metrics.oks import keypoint_similarity

KINDS = ("good", "jitter", "inversion", "swap", "miss", "not found")
GOOD, NEAR = 0.85, 0.5


@dataclass(frozen=True)
class ErrorKinds:
    """How many labelled keypoints of each kind.

    Attributes:
        names: K keypoint names.
        counts: int64 `[K, 6]`, in the order of `KINDS`.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]

    def shares(self) -> dict[str, float]:
        """Of all keypoints together, kind -> share in 0..1; NaN without a label."""
        total = self.counts.sum()
        return {kind: float(n) / total if total else np.nan for kind, n in zip(KINDS, self.counts.sum(0), strict=True)}

    def shares_of(self, keypoint: int) -> dict[str, float]:
        """Likewise of one keypoint, by its index."""
        return ErrorKinds(self.names[keypoint : keypoint + 1], self.counts[keypoint : keypoint + 1]).shares()


def error_kinds(found: Found, sigmas: Sequence[float], flip: Sequence[int]) -> ErrorKinds:
    """Sorts all labelled keypoints by what became of them.

    Args:
        found: labelled people and what was found of each.
        sigmas: K OKS constants.
        flip: the mirror partner of each keypoint, itself where it has none.
    """
    own, inverted = _to_own(found, sigmas, flip)
    swapped = np.zeros_like(own)
    for image in np.unique(found.image_ids):
        rows = np.flatnonzero(found.image_ids == image)
        if len(rows) > 1:
            swapped[rows] = _to_others(found, rows, sigmas, flip)
    mistaken = np.maximum(inverted, swapped) >= NEAR
    kinds = np.select([own >= GOOD, own >= NEAR, mistaken & (inverted >= swapped), mistaken], [0, 1, 2, 3], default=4)
    missed = ~np.isfinite(found.points).all((1, 2))
    kinds[missed] = 5
    labelled = found.truth[..., 2] > 0
    counts = np.stack([((kinds == i) & labelled).sum(0) for i in range(len(KINDS))], 1)
    return ErrorKinds(found.names, counts)


def _to_own(found: Found, sigmas: Sequence[float], flip: Sequence[int]) -> tuple[Floats, Floats]:
    """Similarities `[N, K]` to a keypoint's own label, and to that of its mirror partner; 0 where there is none."""
    partners = np.asarray(flip)
    own = _similarity(found.points, found.truth, found.object_areas(), sigmas)
    mirrored = _similarity(found.points, found.truth[:, partners], found.object_areas(), sigmas)
    return own, np.where(partners == np.arange(len(partners)), 0.0, mirrored)


def _to_others(found: Found, rows: NDArray[np.intp], sigmas: Sequence[float], flip: Sequence[int]) -> Floats:
    """The largest similarity `[n, K]` to a label, or its partner's, of the other people of an image."""
    truth, areas, points = found.truth[rows], found.object_areas()[rows], found.points[rows]
    labels = np.stack([truth, truth[:, np.asarray(flip)]])  # [2, n, K, 3]
    near = _similarity(points[None, :, None], labels[:, None], areas[None, None], sigmas).max(0)  # [n, n, K]
    near[np.arange(len(rows)), np.arange(len(rows))] = 0
    return near.max(1)


def _similarity(points: Floats, labels: Floats, areas: Floats, sigmas: Sequence[float]) -> Floats:
    values = keypoint_similarity(points, labels, areas, sigmas)
    return np.where((labels[..., 2] > 0) & np.isfinite(values), values, 0.0)
