"""torchvision's published ROIAlign, written out sample by sample in float64: the oracle of roi_align's tests."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def samples_of(low: float, high: float, scale: float, aligned: bool, ratio: int, outputs: int) -> np.ndarray:
    """Positions `[outputs, grid]` along one axis: pytorch/vision, csrc/ops/cpu/roi_align_common.h."""
    offset = 0.5 if aligned else 0.0
    start, end = low * scale - offset, high * scale - offset
    extent = end - start if aligned else max(end - start, 1.0)
    bin_size = extent / outputs
    grid = ratio if ratio > 0 else max(math.ceil(extent / outputs), 0)
    p, i = np.arange(outputs)[:, None], np.arange(grid)[None]
    return start + p * bin_size + (i + 0.5) * bin_size / max(grid, 1)


def taps(at: float, length: int) -> list[tuple[int, float]]:
    """The two pixels that a sample reads and their weights; none out of range."""
    if not -1.0 <= at <= length:
        return []
    at = max(at, 0.0)
    low = int(at)
    if low >= length - 1:
        return [(length - 1, 1.0), (length - 1, 0.0)]
    return [(low, 1.0 - (at - low)), (low + 1, at - low)]


def torchvision_weights(box: list[float], maps: Tensor, out: tuple[int, int], rule: dict[str, Any]) -> np.ndarray:
    """The dense matrix `[P, Q, H, W]` by which one box's crop depends on a map: every sample, every corner."""
    H, W = maps.shape[2:]
    weights = np.zeros((*out, H, W))
    if not np.isfinite(box).all():
        return weights
    scale, aligned, ratio = rule["spatial_scale"], rule["aligned"], rule["sampling_ratio"]
    ys = samples_of(box[2], box[4], scale, aligned, ratio, out[0])
    xs = samples_of(box[1], box[3], scale, aligned, ratio, out[1])
    count = max(ys.shape[1] * xs.shape[1], 1)
    for p, q in np.ndindex(*out):
        for y in ys[p]:
            for x in xs[q]:
                for i, wy in taps(y, H):
                    for j, wx in taps(x, W):
                        weights[p, q, i, j] += wy * wx / count
    return weights


def oracle(maps: Tensor, boxes: Tensor, out: tuple[int, int], **rule: Any) -> tuple[Tensor, Tensor]:
    """Crops in float64, and the gradient of their sum weighted by `upstream(...)`."""
    rule = {"spatial_scale": 1.0, "sampling_ratio": 0, "aligned": True} | rule
    wide = maps.detach().double().cpu()
    crops = wide.new_zeros((len(boxes), wide.shape[1], *out))
    gradient = torch.zeros_like(wide)
    g = upstream(crops)
    for r, box in enumerate(boxes.double().cpu().tolist()):
        if not math.isfinite(box[0]) or not -1 < box[0] < len(wide):
            continue
        weights = torch.from_numpy(torchvision_weights(box, wide, out, rule))
        n = int(box[0])
        crops[r] = torch.einsum("pqhw,chw->cpq", weights, wide[n])
        gradient[n] += torch.einsum("pqhw,cpq->chw", weights, g[r])
    return crops, gradient


def upstream(crops: Tensor) -> Tensor:
    """A fixed, uneven gradient for crops of this shape."""
    count = torch.arange(crops.numel(), dtype=torch.float64, device=crops.device)
    return torch.sin(count * 0.7).view(crops.shape).to(crops.dtype)
