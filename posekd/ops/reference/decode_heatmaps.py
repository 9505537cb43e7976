"""`decode_heatmaps` in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# OpenCV's own taps for small kernels with sigma 0, in 256ths, up to the middle one. (Releases of OpenCV before the
# table had a row for 9 take the formula there too: at most 0.002 away.)
_TABLE = {3: (64, 128), 5: (16, 64, 96), 7: (8, 28, 56, 72), 9: (4, 13, 30, 51, 60)}


def blur_taps(kernel_size: int) -> list[float]:
    """The taps of `cv2.GaussianBlur(map, (k, k), 0)`, sum 1: a table up to k = 9, then a Gaussian of one sigma.

    The sigma is 0.3 ((k - 1) / 2 - 1) + 0.8.
    """
    if kernel_size in _TABLE:
        half = [tap / 256 for tap in _TABLE[kernel_size]]
        return half + half[-2::-1]
    sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
    offsets = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    taps = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (taps / taps.sum()).tolist()


def _pixel(maps: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values of `maps` `[B, K, H, W]` at integer pixels `[B, K]`, clamped into the map."""
    height, width = maps.shape[-2:]
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(2, flat[..., None]).squeeze(2)


def _quarter(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """HRNet's quarter pixel toward the higher neighbour; equal neighbours shift nothing."""
    height, width = maps.shape[-2:]
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)

    def toward(high: Tensor, low: Tensor) -> Tensor:
        return 0.25 * ((high > low).to(maps.dtype) - (high < low).to(maps.dtype))

    dx = toward(_pixel(maps, y, x + 1), _pixel(maps, y, x - 1))
    dy = toward(_pixel(maps, y + 1, x), _pixel(maps, y - 1, x))
    return torch.where(inside[..., None], torch.stack([dx, dy], -1), 0.0)


def _dark(maps: Tensor, score: Tensor, x: Tensor, y: Tensor, kernel_size: int) -> Tensor:
    """DARK's Taylor step on the logarithm of the blurred map (Zhang et al., CVPR 2020, equations 5 to 9)."""
    batch, joints, height, width = maps.shape
    taps = torch.tensor(blur_taps(kernel_size), dtype=maps.dtype, device=maps.device)
    planes = maps.reshape(batch * joints, 1, height, width)
    planes = F.conv2d(planes, taps.view(1, 1, 1, -1), padding=(0, kernel_size // 2))
    planes = F.conv2d(planes, taps.view(1, 1, -1, 1), padding=(kernel_size // 2, 0)).view_as(maps)
    blurred_max = planes.amax((2, 3))
    log = torch.log((planes * (score / blurred_max)[..., None, None]).clamp_min(1e-10))

    def at(dy: int, dx: int) -> Tensor:
        return _pixel(log, y + dy, x + dx)

    gx, gy = 0.5 * (at(0, 1) - at(0, -1)), 0.5 * (at(1, 0) - at(-1, 0))
    hxx = 0.25 * (at(0, 2) - 2 * at(0, 0) + at(0, -2))
    hyy = 0.25 * (at(2, 0) - 2 * at(0, 0) + at(-2, 0))
    hxy = 0.25 * (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1))
    determinant = hxx * hyy - hxy**2
    step = torch.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], -1) / determinant[..., None]
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2) & (blurred_max > 0)
    usable = inside & torch.isfinite(step).all(-1)
    return torch.where(usable[..., None], step, 0.0)


def decode_heatmaps(heatmaps: Tensor, method: str, matrices: Tensor | None, blur_kernel: int) -> Tensor:
    """See `posekd.ops.decode_heatmaps`."""
    maps = heatmaps if heatmaps.dtype == torch.float64 else heatmaps.to(torch.float32)
    batch, joints, _, width = maps.shape
    index = maps.flatten(2).argmax(2) if maps.numel() else maps.new_zeros((batch, joints), dtype=torch.int64)
    score = maps.flatten(2).gather(2, index[..., None]).squeeze(2)
    found = score > 0  # false for NaN, which argmax prefers to every number
    x, y = torch.where(found, index % width, 0), torch.where(found, index // width, 0)
    points = torch.stack([x, y], -1).to(maps.dtype)
    if method == "quarter":
        points = points + torch.where(found[..., None], _quarter(maps, x, y), 0.0)
    elif method == "dark":
        points = points + torch.where(found[..., None], _dark(maps, score, x, y, blur_kernel), 0.0)
    if matrices is not None:
        matrices = matrices.to(maps.dtype)
        points = points @ matrices[:, :, :2].transpose(1, 2) + matrices[:, None, :, 2]
    return torch.cat([points, score[..., None]], -1)
