"""How well each keypoint is found: the table printed with the ten COCO numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posekd.metrics.oks import keypoint_similarity


@dataclass(frozen=True)
class KeypointScore:
    """One keypoint over all labelled people.

    The similarity of a keypoint is `exp(-d^2 / (2 area (2 sigma)^2))`, its share of the OKS: 0.5 at a distance
    of 1.18, and 0.75 at one of 0.76, times `2 sigma sqrt(area)`. A person is matched by the official rule:
    the greedy assignment by score at OKS 0.5 or more, without crowds.

    Attributes:
        name: name of the keypoint.
        labelled: how many people have it labelled (visibility above 0).
        matched: how many of these are matched to a prediction.
        similarity: mean similarity over the matched (NaN where none is).
        share_50: share of the matched with similarity 0.5 or more (NaN where none is).
        share_75: the same at 0.75.
        recall: share of all the labelled that is matched with similarity 0.5 or more (NaN without any).
        median_error: median distance over the matched, in image pixels (NaN where none is).
    """

    name: str
    labelled: int
    matched: int
    similarity: float
    share_50: float
    share_75: float
    recall: float
    median_error: float


def keypoint_scores(
    names: Sequence[str],
    sigmas: Sequence[float],
    people: Sequence[Mapping[str, Any]],
    matches: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[KeypointScore, ...]:
    """Scores each keypoint.

    Args:
        names: K names.
        sigmas: K OKS constants.
        people: the scored annotations (COCO dictionaries with `keypoints`), matched or not.
        matches: (annotation, prediction) pairs, each with `keypoints`; annotations with `area`.
    """
    K = len(names)
    labelled = np.zeros(K, dtype=np.int64)
    for person in people:
        labelled += _points(person)[:, 2] > 0
    pairs = list(matches)
    if not pairs:
        return tuple(_summary(name, int(n), np.empty(0), np.empty(0)) for name, n in zip(names, labelled, strict=True))
    truth = np.stack([_points(gt) for gt, _ in pairs])
    found = np.stack([_points(dt) for _, dt in pairs])
    similarity = keypoint_similarity(truth, found, [gt["area"] for gt, _ in pairs], sigmas)
    error = np.linalg.norm(truth[..., :2] - found[..., :2], axis=-1)
    seen = truth[..., 2] > 0
    return tuple(
        _summary(names[k], int(labelled[k]), similarity[seen[:, k], k], error[seen[:, k], k]) for k in range(K)
    )


def _points(entry: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(entry["keypoints"], dtype=np.float64).reshape(-1, 3)


def _summary(name: str, labelled: int, similarity: np.ndarray, error: np.ndarray) -> KeypointScore:
    hits = int((similarity >= 0.5).sum())
    matched = len(similarity)
    recall = hits / labelled if labelled else math.nan
    if matched == 0:
        return KeypointScore(name, labelled, 0, math.nan, math.nan, math.nan, recall, math.nan)
    return KeypointScore(
        name=name,
        labelled=labelled,
        matched=matched,
        similarity=float(similarity.mean()),
        share_50=hits / matched,
        share_75=float((similarity >= 0.75).mean()),
        recall=recall,
        median_error=float(np.median(error)),
    )
