"""crop_warp against OpenCV alone, OpenCV with normalisation as loaders write it, and torch's grid_sample.

64 images of 640x480 bytes, one crop of 256x192 each, as for a top-down batch: boxes of 150 to 460 pixels' width
anywhere near the middle, half of them rotated. A fresh output costs page faults, a reused one does not; both are
measured, and each is compared with a baseline of its own kind.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.ops import PackedImages, crop_warp

from ..harness import Case, options_from, run

COUNT, HEIGHT, WIDTH, SIZE = 64, 480, 640, (256, 192)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def random_matrices(seed: int) -> np.ndarray:
    """Crop pixel to image pixel, float32 `[COUNT, 2, 3]`."""
    rng = np.random.default_rng(seed)
    matrices = []
    for i in range(COUNT):
        angle = math.radians(rng.uniform(-45, 45)) if i % 2 else 0.0
        zoom = rng.uniform(150, 460) / SIZE[1]
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = rng.uniform(0.3, 0.7, 2) * [WIDTH, HEIGHT]
        matrices.append(np.column_stack([linear, center - linear @ [SIZE[1] / 2, SIZE[0] / 2]]))
    return np.stack(matrices).astype(np.float32)


def random_colors(seed: int) -> Tensor:
    """Changes of brightness, contrast and mixture as augmentation draws them, float32 `[COUNT, 3, 4]`."""
    rng = np.random.default_rng(seed)
    colors = np.eye(3, 4) * rng.uniform(0.6, 1.4, (COUNT, 1, 1)) + rng.normal(0, 0.1, (COUNT, 3, 4))
    colors[..., 3] = rng.uniform(-40, 40, (COUNT, 1))
    return torch.from_numpy(colors).float()


def opencv_alone(images: list[np.ndarray], matrices: np.ndarray, crops: np.ndarray) -> None:
    """Bytes into reused bytes: neither normalised nor transposed."""
    for image, matrix, crop in zip(images, matrices, crops, strict=True):
        cv2.warpAffine(image, matrix, SIZE[::-1], dst=crop, flags=FLAGS)


def opencv_loop(images: list[np.ndarray], matrices: np.ndarray, dtype: torch.dtype) -> Tensor:
    """What a loader does a sample: warp, to tensor, normalise; then stack."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    crops = []
    for image, matrix in zip(images, matrices, strict=True):
        crop = cv2.warpAffine(image, matrix, SIZE[::-1], flags=FLAGS)
        tensor = torch.from_numpy(crop.transpose(2, 0, 1).copy()).float().div_(255)
        crops.append(tensor.sub_(mean).div_(std).to(dtype))
    return torch.stack(crops)


def grid_sampled(images: Tensor, matrices: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Plain PyTorch on float images of one size, which are prepared outside."""
    to_unit = torch.tensor([[2 / WIDTH, 0, 1 / WIDTH - 1], [0, 2 / HEIGHT, 1 / HEIGHT - 1]], device=images.device)
    rows, columns = torch.meshgrid(*(torch.arange(n, device=images.device).float() for n in SIZE), indexing="ij")
    points = torch.stack([columns, rows, torch.ones_like(rows)], -1).view(1, -1, 3) @ matrices.transpose(1, 2)
    grid = points @ to_unit[:, :2].T + to_unit[:, 2]
    crops = F.grid_sample(images, grid.view(-1, *SIZE, 2), padding_mode="zeros", align_corners=False)
    return (crops / 255 - mean) / std


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Reused and fresh outputs, channels last, and several crops per image."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(COUNT)]
    matrices = random_matrices(1)
    pictures = [torch.from_numpy(array).to(options.device) for array in arrays]
    source = PackedImages.from_list(pictures) if options.device == "cuda" else pictures
    where = torch.from_numpy(matrices).to(options.device)
    shape = (COUNT, 3, *SIZE)
    size = math.prod(shape) * torch.empty((), dtype=options.dtype).element_size()
    title = f"{COUNT} x {WIDTH}x{HEIGHT} to {SIZE[0]}x{SIZE[1]}, {str(options.dtype).removeprefix('torch.')}"
    kept, reused = torch.empty(shape, dtype=options.dtype, device=options.device), np.empty((COUNT, *SIZE, 3), np.uint8)

    def ours(**more: object) -> Tensor:
        return crop_warp(source, where, SIZE, mean=MEAN, std=STD, dtype=options.dtype, **more)

    yield Case(
        f"{title}, reused output",
        lambda: ours(out=kept),
        {"cv2.warpAffine alone, reused bytes": lambda: opencv_alone(arrays, matrices, reused)},
        size,
    )
    color = random_colors(2).to(options.device)
    yield Case(
        f"{title}, colour matrices, reused output",
        lambda: ours(out=kept, color=color),
        {"posekd without colour matrices": lambda: ours(out=kept)},
        size,
    )
    floats = torch.stack(pictures).permute(0, 3, 1, 2).float().contiguous()
    mean, std = (torch.tensor(v, device=options.device).view(3, 1, 1) for v in (MEAN, STD))
    sampled = {"eager": grid_sampled} | ({} if options.no_compile else {"torch.compile": torch.compile(grid_sampled)})
    yield Case(
        f"{title}, fresh output",
        ours,
        {
            "cv2 + normalise + transpose": lambda: opencv_loop(arrays, matrices, options.dtype),
            **{
                f"grid_sample, {label}": lambda f=f: f(floats, where, mean, std).to(options.dtype)
                for label, f in sampled.items()
            },
        },
        size,
    )
    yield Case(f"{title}, fresh output, channels last", lambda: ours(memory_format=torch.channels_last), {}, size)
    few = torch.arange(COUNT, device=options.device) // 8
    yield Case(f"{title}, eight crops a picture, reused output", lambda: ours(out=kept, image_index=few), {}, size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    cv2.setNumThreads(options.threads)
    run("crop_warp", cases(options), options)
