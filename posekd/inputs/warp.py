"""Cutting normalised network inputs out of packed pixels, on the device where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.structures import InputSpec, Pixels


def warp(
    pixels: Pixels,
    matrices: Tensor,
    spec: InputSpec,
    size: tuple[int, int],
    *,
    color: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Cuts normalised crops out of packed images, in the network's colour order.

    Args:
        pixels: regions of images, and which crop is cut from which.
        matrices: `[B, 2, 3]`, crop pixel to original-image pixel.
        spec: normalisation and colour order; its size is not read.
        size: `(height, width)` of the crops.
        color: float32 `[B, 3, 4]`, colour matrices on red, green, blue; None for none.
        dtype: of the crops.
        memory_format: of the crops.

    Returns:
        `[B, 3, *size]`.
    """
    if pixels.reductions.numel():
        matrices = geometry.reduce_matrices(matrices, pixels.reductions[pixels.index])
    # The pixels are red, green, blue; the spec uses the network's order.
    mean, std = (spec.mean[::-1], spec.std[::-1]) if spec.bgr else (spec.mean, spec.std)
    images = ops.crop_warp(
        ops.PackedImages(pixels.data, pixels.offsets, pixels.shapes),
        geometry.translate_matrices(matrices, -pixels.origins[pixels.index]),
        size,
        image_index=pixels.index,
        color=color,
        mean=mean,
        std=std,
        dtype=dtype,
        memory_format=memory_format,
    )
    return images.flip(1) if spec.bgr else images
