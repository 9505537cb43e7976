"""Images, matrices and float64 crops for the tests of crop_warp."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from helpers import backends

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMATS = [torch.contiguous_format, torch.channels_last]
IDENTITY = torch.eye(3)[None, :2]
# Outputs are at most 3 or so; an image holds steps of up to one from pixel to pixel, so a coordinate that float32
# rounds by 1e-5 of a pixel moves a value by as much.
ATOL = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def bilinear(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Float64 samples of an HWC image at matrix @ (x, y, 1), the four neighbours taken from a zero-padded copy."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y = (row[0] * columns + row[1] * rows + row[2] for row in matrix.astype(np.float64))
    # Two pixels of zeros around, and every coordinate beyond them moved into them.
    padded = np.pad(image.astype(np.float64), ((2, 2), (2, 2), (0, 0)))
    x, y = np.clip(x, -1.5, width + 0.5) + 2, np.clip(y, -1.5, height + 0.5) + 2
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    above = padded[top, left] * (1 - fx) + padded[top, left + 1] * fx
    below = padded[top + 1, left] * (1 - fx) + padded[top + 1, left + 1] * fx
    return above * (1 - fy) + below * fy


def some_images(count: int = 3, channels: int = 3, height: int = 37, width: int = 45) -> list[Tensor]:
    """Ragged images of noise."""
    rng = np.random.default_rng(count)
    sizes = [(height + 3 * i, width - 5 * i) for i in range(count)]
    return [torch.from_numpy(rng.integers(0, 256, (h, w, channels), dtype=np.uint8)) for h, w in sizes]


def some_matrices(count: int, seed: int = 0) -> Tensor:
    """Similarities with rotation, zoom and now and then a mirror, which leave a part of the crop outside."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(count):
        angle, zoom = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 2.5)
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear[:, 0] *= rng.choice([-1, 1])
        center = rng.uniform(10, 30, 2)
        matrices.append(np.column_stack([linear, center - linear @ [10, 12]]))
    return torch.from_numpy(np.stack(matrices)).float()


def expected_crops(images: list[Tensor], matrices: Tensor, index: list[int], size: tuple[int, int]) -> np.ndarray:
    """Float64 crops `[M, C, H, W]` of bytes, divided by 255."""
    pairs = zip(index, matrices, strict=True)
    crops = [bilinear(images[i].numpy(), m.numpy(), size) for i, m in pairs]
    return np.stack(crops).transpose(0, 3, 1, 2) / 255


def on(backend: backends.Backend, images: list[Tensor]) -> list[Tensor]:
    return [image.to(backend.device) for image in images]
