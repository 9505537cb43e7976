"""HigherHRNet's parser as its users run it: pooling and top-k in torch, the rest in NumPy, one map after another.

The algorithm of `lib/core/group.py`, written for the benchmark. SciPy solves the assignment where the original asks the
slower `munkres`, the maps are copied to the host once instead of once per person, and only the keypoints that a person
lacks are searched. So it is no slower than the original.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

ORDER = (0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16)
PEOPLE, SCORE, DISTANCE = 30, 0.1, 1.0

Array = NDArray[np.float32]


def top_k(heatmaps: Tensor, tags: Tensor) -> NDArray[np.float64]:
    """Candidates `[K, 30, 3 + T]` of one image: x, y, score, tags."""
    joints, _, width = heatmaps.shape
    highest = F.max_pool2d(heatmaps[None], 5, 1, 2)[0]
    kept = heatmaps * (highest == heatmaps).to(heatmaps.dtype)
    score, pixel = kept.flatten(1).topk(PEOPLE, dim=1)
    tag = tags.flatten(1, 2).gather(1, pixel[..., None].expand(-1, -1, tags.shape[-1]))
    rows = torch.cat([torch.stack([pixel % width, pixel // width, score], -1), tag], -1)
    return rows.reshape(joints, PEOPLE, -1).cpu().numpy().astype(np.float64)


def match(candidates: NDArray[np.float64]) -> list[Array]:
    """People `[K, 3 + T]` each."""
    from scipy.optimize import linear_sum_assignment

    people: dict[float, NDArray[np.float64]] = {}
    tags: dict[float, list[Array]] = {}

    def start(joint: int, row: NDArray[np.float64]) -> None:
        key = float(row[3])
        people.setdefault(key, np.zeros((len(candidates), len(row))))[joint] = row
        tags[key] = [row[3:].astype(np.float32)]

    for joint in ORDER:
        found = candidates[joint][candidates[joint][:, 2] > SCORE]
        keys = list(people)[:PEOPLE]
        if not keys:
            for row in found:
                start(joint, row)
            continue
        means = np.stack([np.mean(tags[key], axis=0) for key in keys])
        distance = np.linalg.norm(found[:, None, 3:] - means[None], axis=2)
        assigned = dict(zip(*linear_sum_assignment(np.round(distance) * 100 - found[:, 2:3]), strict=True))
        for i, row in enumerate(found):
            if i in assigned and distance[i, assigned[i]] < DISTANCE:
                key = keys[assigned[i]]
                people[key][joint] = row
                tags[key].append(row[3:].astype(np.float32))
            else:
                start(joint, row)
    return [rows.astype(np.float32) for rows in people.values()]


def quarter(heat: Array, x: int, y: int) -> tuple[float, float]:
    """The pixel's centre, a quarter toward the higher neighbours."""
    height, width = heat.shape
    right = heat[y, min(x + 1, width - 1)] > heat[y, max(x - 1, 0)]
    below = heat[min(y + 1, height - 1), x] > heat[max(y - 1, 0), x]
    return x + (0.75 if right else 0.25), y + (0.75 if below else 0.25)


def refine(person: Array, heatmaps: Array, tags: Array) -> None:
    """Fills in the keypoints that a person lacks, with one pass over a whole map for each."""
    joints = np.flatnonzero(person[:, 2] > 0)
    mean = np.mean([tags[k, int(person[k, 1]), int(person[k, 0])] for k in joints], axis=0)
    for k in np.flatnonzero(person[:, 2] == 0):
        distance = ((tags[k] - mean) ** 2).sum(axis=2) ** 0.5
        y, x = np.unravel_index(np.argmax(heatmaps[k] - np.round(distance)), distance.shape)
        if heatmaps[k, y, x] > 0:
            person[k, :2] = quarter(heatmaps[k], int(x), int(y))
            person[k, 2] = heatmaps[k, y, x]


def parse(heatmaps: Tensor, tags: Tensor) -> list[Array]:
    """People `[P, 17, 3 + T]` of every image; `heatmaps` `[B, 17, H, W]`, `tags` `[B, 17, H, W, T]`, float32."""
    results = []
    for maps, planes in zip(heatmaps, tags, strict=True):
        people = match(top_k(maps, planes))
        heat, tag = maps.cpu().numpy(), planes.cpu().numpy()
        for person in people:
            for k in np.flatnonzero(person[:, 2] > 0):
                person[k, :2] = quarter(heat[k], int(person[k, 0]), int(person[k, 1]))
            refine(person, heat, tag)
        results.append(np.stack(people) if people else np.zeros((0, len(heat), 3 + tag.shape[-1]), np.float32))
    return results
