"""Conversion between the inputs of two networks: colours, normalisation, size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.structures import InputSpec


def resample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize in the pixel convention of top-down heatmaps: pixel i of the output reads i * in / out.

    `F.interpolate` puts pixel centres at i + 0.5 and so moves every coordinate by half a pixel of the
    difference; in the convention of HRNet (`heatmap = input / 4`, integer pixel indices) nothing may move.

    Args:
        maps: `[N, C, H, W]`, floating point.
        size: `(height, width)` of the result.

    Returns:
        `[N, C, height, width]`, same dtype. Beyond the last input pixel its value is repeated.
    """
    if maps.shape[-2:] == size:
        return maps
    (H, W), (height, width) = maps.shape[-2:], size
    return _sampled(maps, size, (H / height, W / width))


def _sampled(maps: Tensor, size: tuple[int, int], steps: tuple[float, float]) -> Tensor:
    """Maps of a size whose pixel (v, u) is read, bilinearly, at `steps` times (v, u)."""
    (H, W), (height, width) = maps.shape[-2:], size
    # align_corners=True: -1 is pixel 0, +1 is pixel W - 1, so pixel u stands at 2 u / (W - 1) - 1
    y = torch.arange(height, device=maps.device, dtype=torch.float32) * steps[0]
    x = torch.arange(width, device=maps.device, dtype=torch.float32) * steps[1]
    grid_y, grid_x = torch.meshgrid(2 * y / max(H - 1, 1) - 1, 2 * x / max(W - 1, 1) - 1, indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1).expand(len(maps), -1, -1, -1)
    sampled = F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.to(maps.dtype)


def from_corners(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps of networks that were trained with UDP, in the pixel convention of all others.

    UDP (Huang et al. 2020) lays the first and last pixel of a heatmap on those of the input, so its pixel u stands at
    input pixel u (W - 1) / (w - 1); everywhere else here it stands at u W / w.

    Args:
        maps: `[B, K, h, w]`.
        size: `(H, W)` of the input in pixels.

    Returns:
        `[B, K, h, w]`.
    """
    steps = [full / own * (own - 1) / (full - 1) for own, full in zip(maps.shape[-2:], size, strict=True)]
    return _sampled(maps, (maps.shape[-2], maps.shape[-1]), (steps[0], steps[1]))


def convert_images(images: Tensor, source: InputSpec, target: InputSpec) -> Tensor:
    """Converts a batch that was made for one network to the input of another.

    Args:
        images: `[B, 3, H, W]`, normalised as `source` says.
        source: specification of the network that the batch was made for. Its `size` is not read: the
            batch's own size counts.
        target: specification of the network that will see it.

    Returns:
        `[B, 3, *target.size]` in the target's channel order and normalisation; `images` itself if nothing
        differs.

    Raises:
        ValueError: the two sizes differ in aspect ratio, so that the target would see a stretched person.
    """
    (H, W), (height, width) = images.shape[-2:], target.size
    if H * width != W * height:
        raise ValueError(
            f"the batch is {H}x{W} (height x width) and the other network wants {height}x{width}: another aspect "
            f"ratio shows it stretched people. Choose sizes of equal aspect ratio, e.g. {H}x{W} for both."
        )
    images = resample(images, target.size)
    if (source.mean, source.std, source.bgr) == (target.mean, target.std, target.bgr):
        return images
    source_mean, source_std = source.mean, source.std
    if source.bgr != target.bgr:
        images, source_mean, source_std = images.flip(1), source_mean[::-1], source_std[::-1]
    gain = [a / b for a, b in zip(source_std, target.std, strict=True)]
    shift = [(a - b) / s for a, b, s in zip(source_mean, target.mean, target.std, strict=True)]
    return torch.addcmul(_channels(shift, images), images, _channels(gain, images))


def _channels(values: list[float], images: Tensor) -> Tensor:
    """One number per channel, `[C, 1, 1]`; filled in on the device, for a copy from the host would wait for it."""
    return torch.stack([images.new_full((1, 1), value) for value in values])
