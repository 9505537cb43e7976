"""render_heatmaps against HRNet's NumPy loop, eager PyTorch and torch.compile.

HRNet draws each keypoint in NumPy (one patch per keypoint, pasted into a zero map); that loop is rewritten here from
its rule. The PyTorch baseline draws all keypoints at once as outer products of windowed profiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from posekd.ops import render_heatmaps

from ..harness import Case, options_from, run

SHAPES = ((64, 17, 64, 48), (32, 17, 96, 72), (16, 17, 128, 128))
SIGMA = 2


def numpy_loop(keypoints: np.ndarray, height: int, width: int) -> np.ndarray:
    """HRNet's targets, person by person and keypoint by keypoint."""
    people, joints = keypoints.shape[:2]
    maps = np.zeros((people, joints, height, width), np.float32)
    reach = 3 * SIGMA
    for person, target in zip(keypoints, maps, strict=True):
        for (x, y, visible), plane in zip(person, target, strict=True):
            column, row = int(x + 0.5), int(y + 0.5)
            left, top, right, bottom = column - reach, row - reach, column + reach + 1, row + reach + 1
            if visible <= 0.5 or left >= width or top >= height or right < 0 or bottom < 0:
                continue
            axis = np.arange(0, 2 * reach + 1, 1, np.float32)
            patch = np.exp(-((axis - reach) ** 2 + (axis[:, None] - reach) ** 2) / (2 * SIGMA**2))
            y0, y1, x0, x1 = max(0, top), min(bottom, height), max(0, left), min(right, width)
            plane[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return maps


def plain(keypoints: Tensor, height: int, width: int) -> Tensor:
    """The same for all keypoints at once."""
    centre = (keypoints[..., :2] + 0.5).trunc()
    x = torch.arange(width, device=keypoints.device) - centre[..., 0, None]
    y = torch.arange(height, device=keypoints.device) - centre[..., 1, None]
    profile_x, profile_y = (torch.exp(-(d**2) / (2 * SIGMA**2)) * (d.abs() <= 3 * SIGMA) for d in (x, y))
    profile_y = profile_y * (keypoints[..., 2:] > 0.5)
    return profile_y[..., :, None] * profile_x[..., None, :]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape; one person a map, as in top-down training, and 16 people a map, as bottom-up."""
    generator = torch.Generator().manual_seed(0)
    compiled = {} if options.no_compile else {"torch.compile": torch.compile(plain)}
    for B, K, H, W in SHAPES:
        keypoints = torch.rand(B, K, 3, generator=generator) * torch.tensor([W, H, 0]) + torch.tensor([0, 0, 1])
        array, there = keypoints.numpy(), keypoints.to(options.device)
        size = B * K * H * W * torch.empty((), dtype=options.dtype).element_size()
        title = f"[{B}, {K}, {H}, {W}] {str(options.dtype).removeprefix('torch.')}"
        draw = lambda k=there, H=H, W=W, **kind: render_heatmaps(k, (H, W), SIGMA, dtype=options.dtype, **kind)  # noqa: E731
        baselines = {
            "HRNet's loop in NumPy": lambda k=array, H=H, W=W: numpy_loop(k, H, W),
            **{
                label: lambda f=f, k=there, H=H, W=W: f(k, H, W).to(options.dtype)
                for label, f in {"eager": plain, **compiled}.items()
            },
        }
        yield Case(f"{title}, msra, fresh output", draw, baselines, size)
        kept = torch.zeros(B, K, H, W, dtype=options.dtype, device=options.device)
        loop = {"HRNet's loop in NumPy": baselines["HRNet's loop in NumPy"]}
        yield Case(f"{title}, msra, reused output", lambda d=draw, out=kept: d(out=out), loop, size)
        yield Case(f"{title}, exact", lambda draw=draw: draw(kind="exact"), {}, size)
        crowd = torch.rand(B, 16, K, 3, generator=generator) * torch.tensor([W, H, 0]) + torch.tensor([0, 0, 1])
        crowd = crowd.to(options.device)
        yield Case(f"{title}, 16 people, higherhrnet", lambda d=draw, k=crowd: d(k, kind="higherhrnet"), {}, size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("render_heatmaps", cases(options), options)
