"""oks_nms and soft_oks_nms against HRNet's rule in NumPy and in plain PyTorch: 20, 100 and 300 poses of an image."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from posekd.ops import oks_nms, soft_oks_nms
from posekd.ops.oks import COCO_SIGMAS
from posekd.ops.reference import oks as definition

from ..harness import Case, options_from, run

COUNTS, THRESHOLD, MOST = (20, 100, 300), 0.9, 20
Poses = tuple[np.ndarray, np.ndarray, np.ndarray]


def overlaps(poses: np.ndarray, areas: np.ndarray, i: int, others: np.ndarray) -> np.ndarray:
    """OKS of pose i with others, as HRNet's NumPy code computes it but without its loop over poses."""
    squared = ((poses[others, :, :2] - poses[i, :, :2]) ** 2).sum(-1)
    area = (areas[others] + areas[i]) / 2 + np.spacing(1)
    return np.exp(-squared / (2 * np.asarray(COCO_SIGMAS)) ** 2 / area[:, None] / 2).mean(-1)


def numpy_hard(poses: np.ndarray, scores: np.ndarray, areas: np.ndarray) -> list[int]:
    order, kept = np.argsort(-scores, kind="stable"), []
    while order.size:
        kept.append(int(order[0]))
        order = order[1:][overlaps(poses, areas, order[0], order[1:]) <= THRESHOLD]
    return kept


def numpy_soft(poses: np.ndarray, scores: np.ndarray, areas: np.ndarray) -> list[int]:
    order, kept = np.argsort(-scores, kind="stable"), []
    scores = scores[order]
    while order.size and len(kept) < MOST:
        kept.append(int(order[0]))
        decay = np.exp(-(overlaps(poses, areas, order[0], order[1:]) ** 2) / THRESHOLD)
        order, scores = order[1:], scores[1:] * decay
        again = np.argsort(-scores, kind="stable")
        order, scores = order[again], scores[again]
    return kept


def eager_hard(poses: torch.Tensor, scores: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    kept, count = definition.oks_nms(poses[..., :2], scores, areas, COCO_SIGMAS, THRESHOLD)
    return kept[: int(count)]


def eager_soft(poses: torch.Tensor, scores: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    kept, count = definition.soft_oks_nms(poses[..., :2], scores, areas, COCO_SIGMAS, THRESHOLD, MOST)
    return kept[: int(count)]


def people(count: int) -> Poses:
    """Poses, scores, areas: five slightly moved copies of each person."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 600, (count // 5, 1, 17, 3))
    poses = (base + rng.normal(0, 3, (count // 5, 5, 17, 3))).reshape(count, 17, 3)
    return poses, rng.uniform(size=count), rng.uniform(2000, 20000, count)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Hard and soft suppression; results must be equal."""
    for count in COUNTS:
        arrays = people(count)
        tensors = [torch.from_numpy(array).to(options.device) for array in arrays]
        for name, ours, theirs, eager in (
            ("oks_nms", oks_nms, numpy_hard, eager_hard),
            ("soft_oks_nms", soft_oks_nms, numpy_soft, eager_soft),
        ):
            found = ours(*tensors, THRESHOLD).tolist()
            if not found == theirs(*arrays) == eager(*tensors).tolist():
                raise RuntimeError(f"{name}, NumPy and plain PyTorch keep different poses")
            yield Case(
                f"{name}, {count} poses",
                lambda f=ours, t=tensors: f(*t, THRESHOLD),
                {"NumPy": lambda f=theirs, a=arrays: f(*a), "eager": lambda f=eager, t=tensors: f(*t)},
            )


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("oks", cases(options), options)
