"""How certain a difference of two APs is: a paired bootstrap over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from posekd.metrics.coco import run_cocoeval
from posekd.metrics.coco_files import Source, read_labels, read_results, resolve_sigmas


@dataclass(frozen=True)
class Gain:
    """The difference of two APs, and its bootstrap interval.

    Attributes:
        before: AP of the first results.
        after: AP of the second.
        low: lower end of the 95 % interval of `after - before` over resampled images.
        high: upper end.
    """

    before: float
    after: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """`after - before`."""
        return self.after - self.before


def paired_bootstrap(
    ground_truth: Mapping[str, Any] | Source,
    before: Sequence[Mapping[str, Any]] | Source,
    after: Sequence[Mapping[str, Any]] | Source,
    sigmas: Sequence[float] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Gain:
    """Repeatedly draws images with replacement and scores both results on the same draw.

    It says how much the difference depends on which images were validated on, not on the seeds of training.

    Args:
        ground_truth: as for `evaluate_coco`, with one category.
        before: results of one network.
        after: results of the other.
        sigmas: K OKS constants, as for `evaluate_coco`.
        samples: number of draws.
        seed: seed of the draws.

    Raises:
        ValueError: whatever `evaluate_coco` refuses.
    """
    labels = read_labels(ground_truth)
    constants = np.asarray(resolve_sigmas(labels, sigmas))
    parts = [_images(run_cocoeval(labels, read_results(results, labels), constants)) for results in (before, after)]
    count = len(labels.image_ids)
    whole = [_ap(part, np.arange(count)) for part in parts]
    rng = np.random.default_rng(seed)
    gains = []
    for _ in range(samples):
        drawn = rng.integers(count, size=count)
        first, second = (_ap(part, drawn) for part in parts)
        gains.append(second - first)
    low, high = np.nanpercentile(gains, (2.5, 97.5)) if gains else (np.nan, np.nan)
    return Gain(whole[0], whole[1], float(low), float(high))


@dataclass(frozen=True)
class _Matched:
    """One image: scores `[D]`, matched and ignored detections `[T, D]`, and how many people count."""

    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    people: int


def _images(run: COCOeval) -> list[_Matched]:
    """What the evaluation found in each image, all sizes of people."""
    everyone, T = run.params.areaRng[0], len(run.params.iouThrs)
    found = {e["image_id"]: e for e in run.evalImgs if e is not None and e["aRng"] == everyone}
    images = []
    for image_id in run.params.imgIds:
        e = found.get(image_id)
        if e is None:
            images.append(_Matched(np.zeros(0), np.zeros((T, 0), bool), np.zeros((T, 0), bool), 0))
            continue
        people = int((np.asarray(e["gtIgnore"]) == 0).sum())
        ignored = np.asarray(e["dtIgnore"], bool)
        images.append(_Matched(np.asarray(e["dtScores"]), np.asarray(e["dtMatches"]) > 0, ignored, people))
    return images


def _ap(images: Sequence[_Matched], drawn: np.ndarray) -> float:
    """COCO's AP of some images, repeated ones counted as often; NaN without a labelled person."""
    chosen = [images[i] for i in drawn]
    people = sum(image.people for image in chosen)
    if not people:
        return float("nan")
    order = np.argsort(-np.concatenate([image.scores for image in chosen]), kind="mergesort")
    matched = np.concatenate([image.matched for image in chosen], 1)[:, order]
    counted = ~np.concatenate([image.ignored for image in chosen], 1)[:, order]
    hits, misses = (matched & counted).cumsum(1), (~matched & counted).cumsum(1)
    recall = hits / people
    precision = hits / np.maximum(hits + misses, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    total = 0.0
    levels = np.linspace(0, 1, 101)
    for r, p in zip(recall, precision, strict=True):
        at = np.searchsorted(r, levels, side="left")
        total += p[at[at < len(p)]].sum() / len(levels)
    return total / len(recall)
