"""Object keypoint similarity and duplicate removal in plain PyTorch: definition, and what runs without a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps  # what the official code adds to an area


def _on_device_of(like: Tensor, values: Sequence[float]) -> Tensor:
    """float64 `[K]`, without a copy from the host: that would wait for the GPU, and fail in a CUDA graph."""
    return torch.cat([like.new_full((1,), value, dtype=torch.float64) for value in values])


def oks(a: Tensor, b: Tensor, areas_a: Tensor, areas_b: Tensor, sigmas: Sequence[float]) -> Tensor:
    """float64 `[N, M]` of poses `[N, K, 2]` and `[M, K, 2]`; see `posekd.ops.oks`."""
    variances = (2 * _on_device_of(a, sigmas)).square()
    area = (areas_a.double()[:, None] + areas_b.double()[None]) / 2 + EPS
    squared = (a.double()[:, None] - b.double()[None]).square().sum(-1)
    return (-squared / variances / area[..., None] / 2).exp().mean(-1)


def _finite(keypoints: Tensor, scores: Tensor, areas: Tensor) -> Tensor:
    return keypoints.isfinite().flatten(1).all(1) & scores.isfinite() & areas.isfinite()


def oks_nms(
    keypoints: Tensor, scores: Tensor, areas: Tensor, sigmas: Sequence[float], threshold: float
) -> tuple[Tensor, Tensor]:
    """Kept indices `[N]`, padded with -1, and their number. No value is read back from the device."""
    N = keypoints.shape[0]
    order = scores.double().argsort(descending=True, stable=True)
    p, areas_in_order = keypoints[order], areas[order]
    duplicates = oks(p, p, areas_in_order, areas_in_order, sigmas) > threshold
    alive = _finite(keypoints, scores, areas)[order]
    for i in range(N):
        alive[i + 1 :] &= ~(alive[i] & duplicates[i, i + 1 :])
    count = alive.sum()
    kept_first = order[(~alive).to(torch.uint8).argsort(stable=True)]
    return torch.where(torch.arange(N, device=order.device) < count, kept_first, -1), count


def soft_oks_nms(
    keypoints: Tensor, scores: Tensor, areas: Tensor, sigmas: Sequence[float], threshold: float, max_keep: int
) -> tuple[Tensor, Tensor]:
    """Taken indices `[min(N, max_keep)]`, padded with -1, and their number."""
    N = keypoints.shape[0]
    capacity = min(N, max_keep)
    taken = torch.full((capacity,), -1, dtype=torch.int64, device=keypoints.device)
    alive = _finite(keypoints, scores, areas)
    decay = (-oks(keypoints, keypoints, areas, areas, sigmas).square() / threshold).exp()
    current = scores.double().clone()
    for i in range(capacity):
        best = torch.where(alive, current, -torch.inf).argmax()
        taken[i] = torch.where(alive.any(), best, -1)
        current = current * decay.index_select(0, best[None])[0]  # decay[best] would read `best` back
        alive = alive & (torch.arange(N, device=alive.device) != best)
    return taken, (taken >= 0).sum()
