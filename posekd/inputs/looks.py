"""Blur, noise and cut-out rectangles on inputs that are cut already: a second pass, on the device where they lie."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.structures import InputSpec, Looks


def colors_of(looks: Looks | None) -> Tensor | None:
    """The colour matrices for `inputs.warp`, `[B, 3, 4]`, or None where colours do not vary."""
    return looks.colors if looks is not None and len(looks.colors) else None


def change_looks(images: Tensor, looks: Looks | None, spec: InputSpec) -> Tensor:
    """Blurs, adds noise and cuts rectangles out, in this order, where the looks say so.

    Noise and means are those of values before normalisation. Noise is not clamped. A rectangle is filled with the mean
    colour, which is 0 in a normalised input.

    Args:
        images: `[B, 3, H, W]`, normalised by `spec`; not changed.
        looks: of these images, or None for nothing to do.
        spec: the normalisation, in the network's order of colours.

    Returns:
        `[B, 3, H, W]`, the same dtype and memory format; `images` itself where nothing changes.
    """
    if looks is None:
        return images
    last = images.is_contiguous(memory_format=torch.channels_last)
    if len(looks.blurred):
        rows = images.index_select(0, looks.blurred)
        images = images.index_copy(0, looks.blurred, blur(rows, looks.blurs))
    if len(looks.noisy):
        grain = torch.stack([_noise(images, seed) for seed in looks.noise_seeds])
        strength = torch.stack([looks.noises / (255 * s) for s in spec.std], 1)[..., None, None]
        images = images.index_add(0, looks.noisy, (grain * strength).to(images.dtype))
    if looks.rectangles.numel():
        images = images.masked_fill(_inside(looks.rectangles, images.shape[-2], images.shape[-1])[:, None], 0)
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image convolved with its own kernel along rows and columns; the edge's pixels go on beyond it.

    Args:
        images: `[n, C, H, W]`.
        kernels: float32 `[n, taps]`, an odd number.
    """
    n, channels, height, width = images.shape
    reach = kernels.shape[1] // 2
    weights = kernels.to(images.dtype).repeat_interleave(channels, 0)[:, None]
    planes = images.reshape(1, n * channels, height, width)
    planes = F.pad(planes, (reach, reach, reach, reach), mode="replicate")
    planes = F.conv2d(planes, weights[:, :, None], groups=n * channels)
    return F.conv2d(planes, weights[..., None], groups=n * channels).view(images.shape)


def _noise(images: Tensor, seed: int) -> Tensor:
    """Normal noise for one image, `[3, H, W]` float32: of its seed alone, on one kind of device."""
    shape = images.shape[1:]
    if images.is_meta:
        return images.new_empty(shape, dtype=torch.float32)
    generator = torch.Generator(images.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=images.device)


def _inside(rectangles: Tensor, height: int, width: int) -> Tensor:
    """Which pixels have their centres in one of the rectangles `[B, R, 4]`, bool `[B, height, width]`."""
    x = (torch.arange(width, device=rectangles.device) + 0.5) / width
    y = (torch.arange(height, device=rectangles.device) + 0.5) / height
    left, top, right, bottom = (side[..., None] for side in rectangles.unbind(-1))  # [B, R, 1]
    columns, rows = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return (columns[:, :, None, :] & rows[:, :, :, None]).any(1)
