"""center_focal_loss against the same in plain PyTorch: targets drawn person by person, then CornerNet's focal loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import center_focal_loss
from posekd.ops.reference.center_focal_loss import point_targets

from ..harness import Case, options_from, run

SHAPES = ((16, 128, 128, 8), (4, 128, 128, 30), (16, 32, 32, 2))  # images, height, width, people


def composed(logits: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
    """As the public implementations compute it, in the logits' precision widened to float32."""
    targets = point_targets(boxes, counts, (logits.shape[2], logits.shape[3]), False)
    p = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    point = targets == 1
    terms = torch.where(point, (1 - p) ** 2 * p.log(), (1 - targets) ** 4 * p**2 * (1 - p).log())
    return -(terms.sum((0, 2, 3)) / point.sum((0, 2, 3)).clamp(min=1)).sum()


def trained(function: Callable[..., Tensor], logits: Tensor, boxes: Tensor, counts: Tensor) -> Callable[[], None]:
    """Forward and backward, with a fresh gradient each time."""

    def step() -> None:
        logits.grad = None
        function(logits, boxes, counts).backward()

    return step


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Loss and gradient; both must agree."""
    generator = torch.Generator().manual_seed(0)
    for B, H, W, P in SHAPES:
        logits = torch.randn(B, 3, H, W, generator=generator).to(options.device, options.dtype).requires_grad_()
        low = torch.rand(B, P, 2, generator=generator) * torch.tensor([W / 2, H / 2])
        boxes = torch.cat((low, low + torch.rand(B, P, 2, generator=generator) * torch.tensor([W / 2, H / 2])), -1)
        given = boxes.to(options.device), torch.full((B,), P, device=options.device)
        torch.testing.assert_close(center_focal_loss(logits, *given), composed(logits, *given), rtol=1e-4, atol=1e-4)
        title = f"[{B}, 3, {H}, {W}] {str(options.dtype).removeprefix('torch.')}, {P} people, forward + backward"
        baselines = {"plain PyTorch": trained(composed, logits, *given)}
        if not options.no_compile:
            baselines["torch.compile"] = trained(torch.compile(composed), logits, *given)
        size = logits.numel() * logits.element_size()
        yield Case(title, trained(center_focal_loss, logits, *given), baselines, 3 * size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("center_focal_loss", cases(options), options)
