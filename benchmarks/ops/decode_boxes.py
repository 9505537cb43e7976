"""decode_boxes (peaks, pairs of corners, soft-NMS) against the same in plain PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import decode_boxes
from posekd.ops.reference.center_focal_loss import point_targets
from posekd.ops.reference.decode_boxes import pair_corners
from posekd.ops.reference.group_keypoints import top_k_peaks

from ..harness import Case, options_from, run

SHAPES = ((1, 128, 128, 4), (16, 128, 128, 8))  # images, height, width, people


def composed(heatmaps: Tensor, offsets: Tensor, areas_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Max pooling, a sort, all pairs, and 32 rounds of soft-NMS."""
    B, _, H, W = heatmaps.shape
    inside = offsets.float().reshape(B, 3, 2, H, W).permute(0, 1, 3, 4, 2)
    peaks = top_k_peaks(heatmaps.float().sigmoid(), inside, 32, 0.0, 3)
    points = torch.cat((peaks[..., :2] + peaks[..., 3:], peaks[..., 2:3]), -1)
    return pair_corners(points[:, None, :2], points[:, 2], areas_scale, 0, 32, 0.5)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Maps of people, with noise beneath; the first box and its score must agree."""
    generator = torch.Generator().manual_seed(0)
    for B, H, W, P in SHAPES:
        low = torch.rand(B, P, 2, generator=generator) * torch.tensor([W / 2, H / 2])
        boxes = torch.cat((low, low + 4 + torch.rand(B, P, 2, generator=generator) * (min(H, W) / 3)), -1)
        heat = point_targets(boxes, torch.full((B,), P), (H, W), True) * 8 - 5
        heat = heat + torch.randn(heat.shape, generator=generator)
        given = (
            heat.to(options.device, options.dtype),
            torch.rand(B, 6, H, W, generator=generator).to(options.device, options.dtype),
            torch.full((B,), 16.0, device=options.device),
        )
        for ours, expected in zip(decode_boxes(*given)[:2], composed(*given)[:2], strict=True):
            torch.testing.assert_close(ours[:, 0], expected[:, 0], rtol=1e-4, atol=1e-4)
        title = f"[{B}, 3, {H}, {W}] {str(options.dtype).removeprefix('torch.')}, {P} people"
        size = sum(x.numel() * x.element_size() for x in given[:1])
        yield Case(title, lambda g=given: decode_boxes(*g), {"plain PyTorch": lambda g=given: composed(*g)}, size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("decode_boxes", cases(options), options)
