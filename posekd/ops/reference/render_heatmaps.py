"""`render_heatmaps` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def _axis(center: Tensor, size: int, sigma: float, kind: str) -> tuple[Tensor, Tensor]:
    """One axis of every Gaussian: `[..., size]` profiles, and whether the window touches the map.

    A Gaussian is the outer product of its two axes, windows included, so one axis is all there is to define.
    """
    pixel = torch.arange(size, device=center.device, dtype=center.dtype)
    if kind == "msra":  # HRNet, JointsDataset.generate_target: truncation is toward zero, window [begin, end)
        radius = 3 * sigma
        middle = torch.trunc(center + 0.5)
        begin, end = torch.trunc(middle - radius), torch.trunc(middle + radius + 1)
        peak = begin + (2 * radius + 1) // 2
        inside = (begin < size) & (end >= 0)
    elif kind == "higherhrnet":  # HigherHRNet, HeatmapGenerator: round half to even, kernel 6 sigma + 3 wide
        radius = 3 * sigma + 1
        middle = torch.trunc(center)
        begin, end = torch.round(middle - radius), torch.round(middle + radius + 1)
        peak = begin + radius
        inside = (middle >= 0) & (middle < size)
    else:  # DARK's unbiased encoding: no window; adjust_target_weight truncates its ends toward zero
        radius = 3 * sigma
        begin, end = torch.full_like(center, -1.0), torch.full_like(center, size + 1.0)
        peak = center
        inside = (torch.trunc(center - radius) < size) & (torch.trunc(center + radius + 1) >= 0)
    profile = torch.exp(-((pixel - peak[..., None]) ** 2) / (2 * sigma**2))
    window = (pixel >= begin[..., None]) & (pixel < end[..., None])
    return torch.where(window, profile, 0.0), inside


def render_heatmaps(
    keypoints: Tensor, size: tuple[int, int], sigma: float, kind: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `posekd.ops.render_heatmaps`; `keypoints` is `[B, P, K, 3]` here."""
    height, width = size
    work = torch.float32 if keypoints.device.type == "mps" else torch.float64
    x, y, visibility = keypoints.to(work).unbind(-1)
    finite = torch.isfinite(x) & torch.isfinite(y)
    column, x_inside = _axis(torch.where(finite, x, 0.0), width, sigma, kind)
    row, y_inside = _axis(torch.where(finite, y, 0.0), height, sigma, kind)
    present = finite & x_inside & y_inside & (visibility > 0)  # a NaN visibility compares false
    if kind == "higherhrnet":
        weight, drawn = present.to(work), present
    else:
        weight = torch.where(present, visibility.clamp(max=1.0), 0.0)
        drawn = weight > 0.5
    maps = torch.where(drawn[..., None, None], row[..., :, None] * column[..., None, :], 0.0)
    if keypoints.shape[1] == 0:
        batch, _, joints, _ = keypoints.shape
        return (
            maps.new_zeros((batch, joints, height, width), dtype=dtype),
            weight.new_zeros((batch, joints), dtype=torch.float32),
        )
    return maps.amax(1).to(dtype), weight.amax(1).to(torch.float32)
