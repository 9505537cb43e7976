"""AP of keypoints over people who are matched by PCK: the rule of MPII's multi-person benchmark and of PoseTrack.

Distances are in units of the labelled head; a keypoint is found within half of it. Each predicted person stands for the
labelled one that it meets best, each labelled person takes the best of these, and the keypoints of all are ranked by
score, one by one. (evaluateAP.m and assignGTmulti.m of MPII, of which poseval is a translation.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REACH = 0.5  # head sizes


def head_distances(points: Floats, there: Bools, found: Floats, found_there: Bools, heads: Floats) -> Floats:
    """Distances of keypoints in head sizes, `[labelled people, predicted people, K]`; infinite where one is missing.

    Args:
        points: `[N, K, 2]` labels in pixels.
        there: `[N, K]`, which are labelled.
        found: `[M, K, 2]` predictions.
        found_there: `[M, K]`.
        heads: `[N]`, head sizes in pixels.
    """
    if not len(points) or not len(found):
        return np.full((len(points), len(found), points.shape[1]), np.inf)
    gaps = np.linalg.norm(points[:, None] - found, axis=-1) / heads[:, None, None]
    return np.where(there[:, None] & found_there, gaps, np.inf)


class KeypointRanking:
    """The keypoints of predicted people over many images, right and wrong ones.

    Args:
        count: K.
    """

    def __init__(self, count: int) -> None:
        self.labelled = np.zeros(count)
        self._scores: list[list[Floats]] = [[] for _ in range(count)]
        self._right: list[list[Bools]] = [[] for _ in range(count)]

    def add(self, there: Bools, found_there: Bools, scores: Floats, distances: Floats) -> None:
        """Adds an image.

        Args:
            there: `[N, K]`, which keypoints are labelled.
            found_there: `[M, K]`, which are predicted.
            scores: `[M, K]`.
            distances: `[N, M, K]`, see `head_distances`.
        """
        self.labelled += there.sum(0)
        hits = _hits(there, distances)
        for j in range(len(self.labelled)):
            own = found_there[:, j]
            self._scores[j].append(scores[own, j])
            self._right[j].append(hits[own, j])

    def result(self) -> tuple[Floats, Floats, Floats]:
        """AP, precision and recall of each keypoint, `[K]` each, in percent; NaN where nothing is labelled."""
        rows = [
            _average_precision(np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, bool), *right]), n)
            for scores, right, n in zip(self._scores, self._right, self.labelled, strict=True)
        ]
        AP, precision, recall = np.array(rows).T
        return AP, precision, recall


def _hits(there: Bools, distances: Floats) -> Bools:
    """Which keypoints of the predicted people are right, `[predicted people, K]`."""
    people, predicted = distances.shape[:2]
    hits = np.zeros((predicted, there.shape[1]), bool)
    if not people or not predicted:
        return hits
    near = distances <= REACH
    share = near.sum(2) / np.maximum(there.sum(1), 1)[:, None]
    own = share.argmax(0)  # of each predicted person the labelled one that it meets best
    share = np.where(np.arange(people)[:, None] == own, share, 0.0)
    best = share.argmax(1)
    for person in np.flatnonzero(share.max(1) > 0):
        hits[best[person]] = near[person, best[person]]
    return hits


def _average_precision(scores: Floats, right: Bools, labelled: float) -> tuple[float, float, float]:
    """AP as Pascal VOC computes it, precision and recall of all; percent."""
    if not labelled:
        return np.nan, np.nan, np.nan
    if not len(scores):
        return 0.0, 0.0, 0.0
    order = scores.argsort()[::-1]
    found = right[order].cumsum()
    recall, precision = found / labelled, found / np.arange(1, len(found) + 1)
    steps = np.diff(np.concatenate(([0.0], recall, [1.0])))
    envelope = np.maximum.accumulate(np.append(precision, 0.0)[::-1])[::-1]
    return 100 * float((steps * envelope).sum()), 100 * float(precision[-1]), 100 * float(recall[-1])


def with_mean(values: Floats) -> Floats:
    """Values `[K]` of keypoints, and their mean over those that are known."""
    known = values[~np.isnan(values)]
    return np.append(values, known.mean() if len(known) else np.nan)


def group_means(values: Floats, groups: dict[str, tuple[int, ...]]) -> dict[str, float]:
    """The columns of the papers' tables: means of groups of keypoints, over those that are known; NaN for none."""
    return {name: float(with_mean(values[list(of)])[-1]) for name, of in groups.items()}
