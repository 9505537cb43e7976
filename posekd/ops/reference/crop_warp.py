"""`crop_warp` in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sample(image: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """One crop: bilinear samples of `image` `[C, H, W]` at `matrix @ (x, y, 1)`, zero outside.

    Pixel centres are integers. Each of the four neighbours that lies outside the image contributes zero; so
    does every point whose coordinate is not finite. Works in the dtype of `matrix`.
    """
    channels, height, width = image.shape
    rows = torch.arange(size[0], dtype=matrix.dtype, device=matrix.device)[:, None]
    columns = torch.arange(size[1], dtype=matrix.dtype, device=matrix.device)[None, :]
    x = matrix[0, 0] * columns + (matrix[0, 1] * rows + matrix[0, 2])
    y = matrix[1, 0] * columns + (matrix[1, 1] * rows + matrix[1, 2])
    near = (x > -1) & (x < width) & (y > -1) & (y < height)  # false for NaN
    x, y = torch.where(near, x, 0.0), torch.where(near, y, 0.0)
    left, top = x.floor(), y.floor()
    crop = image.new_zeros((channels, *size), dtype=matrix.dtype)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = (left + dx).long(), (top + dy).long()
        inside = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        value = image[:, row.clamp(0, height - 1), column.clamp(0, width - 1)].to(matrix.dtype)
        weight = (1 - (x - (left + dx)).abs()) * (1 - (y - (top + dy)).abs())
        crop += torch.where(inside, value * weight, 0.0)
    return crop


def unpack(pixels: Tensor, offsets: Tensor, shapes: Tensor, channels: int) -> list[Tensor]:
    """The images of a packed buffer as `[C, H, W]` views; one that is not wholly inside it comes back empty."""
    pictures = []
    for start, (height, width, depth) in zip(offsets.tolist(), shapes.tolist(), strict=True):
        end = start + height * width * depth
        fits = min(start, height, width) >= 0 and end <= pixels.numel() and depth == channels
        picture = pixels[start:end].view(height, width, depth) if fits else pixels.new_empty(0, 0, channels)
        pictures.append(picture.permute(2, 0, 1))
    return pictures


def tint(crops: Tensor, color: Tensor) -> Tensor:
    """`color @ (red, green, blue, 1)` of each pixel, clamped to 0..255.

    Args:
        crops: `[M, 3, H, W]`, 0 to 255.
        color: `[M, 3, 4]`.
    """
    mixed = torch.einsum("mij,mjhw->mihw", color[..., :3], crops) + color[..., 3, None, None]
    return mixed.clamp(0, 255)


def crop_warp(
    images: Sequence[Tensor],
    matrices: Tensor,
    image_index: Tensor | None,
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    color: Tensor | None = None,
) -> Tensor:
    """See `posekd.ops.crop_warp`; `images` are `[C, H, W]`, `matrices` in the dtype to compute in."""
    crops = matrices.new_zeros((len(matrices), channels, *size))
    is_bytes = len(images) > 0 and images[0].dtype == torch.uint8
    indices = range(len(matrices)) if image_index is None else image_index.tolist()
    for crop, matrix, index in zip(crops, matrices, indices, strict=True):
        if 0 <= index < len(images) and images[index].numel() and torch.isfinite(matrix).all():
            crop.copy_(sample(images[index], matrix, size))
    if color is not None:
        crops = tint(crops, color.to(crops.dtype))
    if is_bytes:
        crops /= 255
    if mean is not None:
        crops -= crops.new_tensor(mean).view(-1, 1, 1)
    if std is not None:
        crops /= crops.new_tensor(std).view(-1, 1, 1)
    return crops.to(dtype)
