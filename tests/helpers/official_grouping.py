"""HigherHRNet's parser, written anew for the tests in NumPy and SciPy: slow, and independent of posekd.

It follows the rules of `lib/core/group.py` in HigherHRNet-Human-Pose-Estimation, one image at a time. Where several
assignments cost the same the official answer depends on the solver; `Parse.ambiguous` says whether any of them would
have given other people.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

COCO_ORDER = [0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16]
FORBIDDEN = 1e7


@dataclass
class Person:
    rows: np.ndarray  # [K, 3 + T] float64
    tags: list[np.ndarray] = field(default_factory=list)


@dataclass
class Parse:
    people: np.ndarray  # [P, K, 3 + T] float32
    scores: np.ndarray  # [P]
    ambiguous: bool


@dataclass
class Parser:
    max_people: int = 30
    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    nms_kernel: int = 5
    order: list[int] | None = None
    ignore_too_many: bool = False
    use_detection_score: bool = True
    adjust: bool = True
    refine: bool = True

    def __call__(self, heat: np.ndarray, tags: np.ndarray) -> Parse:
        """`heat` `[K, H, W]` and `tags` `[K, H, W, T]`, float32."""
        self.ambiguous = False
        people = [
            p.rows.astype(np.float32)
            for p in self.match([self.peaks(h, t) for h, t in zip(heat, tags, strict=True)]).values()
        ]
        if self.adjust:
            for rows in people:
                for k in np.flatnonzero(rows[:, 2] > 0):
                    rows[k, :2] = quarter(heat[k], int(rows[k, 0]), int(rows[k, 1]))
        scores = np.array([rows[:, 2].astype(np.float64).mean() for rows in people])
        if self.refine:
            for rows in people:
                fill(rows, heat, tags)
        shape = (0, len(heat), 3 + tags.shape[-1])
        return Parse(np.stack(people) if people else np.zeros(shape, np.float32), scores, self.ambiguous)

    def peaks(self, heat: np.ndarray, tags: np.ndarray) -> np.ndarray:
        """Detections of one keypoint, `[N, 3 + T]` float64, highest first."""
        highest = ndimage.maximum_filter(heat, self.nms_kernel, mode="constant", cval=-np.inf)
        kept = np.where(highest == heat, heat, 0).ravel()
        top = np.argsort(-kept, kind="stable")[: self.max_people]
        top = top[kept[top] > self.detection_threshold]
        y, x = np.divmod(top, heat.shape[1])
        return np.column_stack([x, y, kept[top], tags.reshape(-1, tags.shape[-1])[top]]).astype(np.float64)

    def match(self, peaks: list[np.ndarray]) -> dict[float, Person]:
        people: dict[float, Person] = {}
        order = self.order or (COCO_ORDER if len(peaks) == 17 else list(range(len(peaks))))
        for k in order:
            found = peaks[k]
            if len(found) == 0:
                continue
            candidates = list(people.values())[: self.max_people]
            if self.ignore_too_many and len(candidates) == self.max_people:
                continue
            joins = self.assign(found, candidates) if candidates else [None] * len(found)
            for row, person in zip(found, joins, strict=True):
                if person is None:
                    key = float(np.float32(row[3]))
                    person = people.setdefault(key, Person(np.zeros((len(peaks), found.shape[1]))))
                    person.tags = []
                person.rows[k] = row
                person.tags.append(row[3:].astype(np.float32))
        return people

    def assign(self, found: np.ndarray, candidates: list[Person]) -> list[Person | None]:
        means = np.stack([np.mean(np.stack(p.tags), axis=0) for p in candidates]).astype(np.float64)
        distance = np.linalg.norm(found[:, None, 3:] - means[None], axis=2)
        cost = np.round(distance) * 100 - found[:, 2:3] if self.use_detection_score else distance
        near = distance < self.tag_threshold
        rows, columns = linear_sum_assignment(cost)
        self.ambiguous |= ambiguous(cost, near, rows, columns)
        joins: list[Person | None] = [None] * len(found)
        for r, c in zip(rows, columns, strict=True):
            if near[r, c]:
                joins[r] = candidates[c]
        return joins


def least_cost(cost: np.ndarray) -> float:
    return float(cost[linear_sum_assignment(cost)].sum())


def ambiguous(cost: np.ndarray, near: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> bool:
    """Whether another assignment of the same cost joins other pairs of the `near` ones."""
    least = float(cost[rows, columns].sum())
    chosen = set(zip(rows.tolist(), columns.tolist(), strict=True))
    for r, c in zip(*np.nonzero(near), strict=True):
        if (r, c) in chosen:  # can one do without it?
            other = cost.copy()
            other[r, c] = FORBIDDEN
            if least_cost(other) <= least + 1e-6:
                return True
        else:  # can one do with it?
            rest = np.delete(np.delete(cost, r, 0), c, 1)
            if cost[r, c] + (least_cost(rest) if rest.size else 0.0) <= least + 1e-6:
                return True
    return False


def quarter(heat: np.ndarray, x: int, y: int) -> tuple[float, float]:
    """The pixel's centre, a quarter toward the higher neighbour; equal neighbours count as the lower side."""
    h, w = heat.shape
    right = heat[y, min(x + 1, w - 1)] > heat[y, max(x - 1, 0)]
    below = heat[min(y + 1, h - 1), x] > heat[max(y - 1, 0), x]
    return x + (0.25 if right else -0.25) + 0.5, y + (0.25 if below else -0.25) + 0.5


def fill(rows: np.ndarray, heat: np.ndarray, tags: np.ndarray) -> None:
    present = rows[:, 2] > 0
    own = [tags[k, int(rows[k, 1]), int(rows[k, 0])] for k in np.flatnonzero(present)]
    mean = np.mean(own, axis=0, dtype=np.float32)
    for k in np.flatnonzero(~present):
        distance = np.sqrt(np.square(tags[k] - mean).sum(axis=-1))
        value = heat[k] - np.round(distance)
        assert value.dtype == np.float32
        y, x = np.unravel_index(np.argmax(value), value.shape)
        if heat[k, y, x] > 0:
            rows[k, :2] = quarter(heat[k], int(x), int(y))
            rows[k, 2] = heat[k, y, x]
