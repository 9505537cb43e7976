"""decode_heatmaps against HRNet's and DARK's NumPy loops, eager PyTorch and torch.compile.

HRNet finds the maxima of all maps by NumPy and shifts keypoint by keypoint; DARK blurs map by map with OpenCV. Both are
rewritten here from their rules. The PyTorch baseline does HRNet's shift for all keypoints at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from posekd.ops import decode_heatmaps, render_heatmaps

from ..harness import Case, options_from, run

SHAPES = ((64, 17, 64, 48), (32, 17, 96, 72), (16, 17, 128, 128))
BLUR = 11


def numpy_maxima(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[B, K, 2]` and values `[B, K]` of the maxima; the origin where none is positive."""
    B, K, _, W = maps.shape
    flat = maps.reshape(B, K, -1)
    index, score = flat.argmax(2), flat.max(2)
    points = np.stack([index % W, index // W], -1).astype(np.float32)
    return points * (score > 0)[..., None], score


def numpy_quarter(maps: np.ndarray) -> np.ndarray:
    """HRNet's decoding."""
    B, K, H, W = maps.shape
    points, score = numpy_maxima(maps)
    for b in range(B):
        for k in range(K):
            plane = maps[b, k]
            x, y = int(np.floor(points[b, k, 0] + 0.5)), int(np.floor(points[b, k, 1] + 0.5))
            if 1 < x < W - 1 and 1 < y < H - 1:
                difference = [plane[y, x + 1] - plane[y, x - 1], plane[y + 1, x] - plane[y - 1, x]]
                points[b, k] += np.sign(difference) * 0.25
    return np.concatenate([points, score[..., None]], -1)


def numpy_dark(maps: np.ndarray) -> np.ndarray:
    """DARK's decoding."""
    B, K, H, W = maps.shape
    points, score = numpy_maxima(maps)
    border = BLUR // 2
    for b in range(B):
        for k in range(K):
            blurred = cv2.GaussianBlur(np.pad(maps[b, k], border), (BLUR, BLUR), 0)[border:-border, border:-border]
            p = np.log(np.maximum(blurred * (score[b, k] / blurred.max()), 1e-10))
            x, y = int(points[b, k, 0]), int(points[b, k, 1])
            if not (1 < x < W - 2 and 1 < y < H - 2):
                continue
            gradient = 0.5 * np.array([p[y, x + 1] - p[y, x - 1], p[y + 1, x] - p[y - 1, x]])
            xx = 0.25 * (p[y, x + 2] - 2 * p[y, x] + p[y, x - 2])
            yy = 0.25 * (p[y + 2, x] - 2 * p[y, x] + p[y - 2, x])
            xy = 0.25 * (p[y + 1, x + 1] - p[y - 1, x + 1] - p[y + 1, x - 1] + p[y - 1, x - 1])
            if xx * yy - xy**2 != 0:
                points[b, k] -= np.linalg.inv([[xx, xy], [xy, yy]]) @ gradient
    return np.concatenate([points, score[..., None]], -1)


def plain(maps: Tensor) -> Tensor:
    """HRNet's decoding for all keypoints at once."""
    _, _, H, W = maps.shape
    flat = maps.flatten(2)
    score, index = flat.max(2)
    x, y = index % W, index // W
    inside = (x > 1) & (x < W - 1) & (y > 1) & (y < H - 1)
    at = lambda offset: flat.gather(2, (index + offset).clamp(0, H * W - 1)[..., None]).squeeze(2)  # noqa: E731
    shift = torch.stack([at(1) - at(-1), at(W) - at(-W)], -1).sign() * 0.25 * inside[..., None]
    points = (torch.stack([x, y], -1) + shift) * (score > 0)[..., None]
    return torch.cat([points, score[..., None]], -1)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape by each method, on Gaussians with 2 % of noise."""
    generator = torch.Generator().manual_seed(0)
    compiled = {} if options.no_compile else {"torch.compile": torch.compile(plain)}
    for B, K, H, W in SHAPES:
        keypoints = torch.rand(B, K, 3, generator=generator) * torch.tensor([W, H, 0]) + torch.tensor([0, 0, 1])
        maps = render_heatmaps(keypoints, (H, W), kind="exact")[0]
        maps = (maps + 0.02 * torch.randn(maps.shape, generator=generator)).to(options.dtype)
        array, there = maps.float().numpy(), maps.to(options.device)
        size = maps.numel() * maps.element_size()
        title = f"[{B}, {K}, {H}, {W}] {str(options.dtype).removeprefix('torch.')}"
        yield Case(f"{title}, argmax", lambda m=there: decode_heatmaps(m, "argmax"), {}, size)
        baselines = {
            "HRNet's loop in NumPy": lambda a=array: numpy_quarter(a),
            **{label: lambda f=f, m=there: f(m) for label, f in {"eager": plain, **compiled}.items()},
        }
        yield Case(f"{title}, quarter", lambda m=there: decode_heatmaps(m, "quarter"), baselines, size)
        dark = {"DARK's loop in NumPy and OpenCV": lambda a=array: numpy_dark(a)}
        yield Case(f"{title}, dark", lambda m=there: decode_heatmaps(m, "dark"), dark, size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    cv2.setNumThreads(options.threads)
    run("decode_heatmaps", cases(options), options)
