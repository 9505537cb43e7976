"""mimic_loss against ROIAlign and the squared error as one writes them in PyTorch, eager and compiled.

Two target sets (the teacher's heatmaps and the labels'), forward and backward, with and without a gradient to the
targets. The plain form samples by dense matrices (see `roi_align`) and stores crops and differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import mimic_loss

from ..harness import Case, options_from, run
from .roi_align import RATIO, SCALE, people_boxes, plain

SHAPES = (((16, 17, 64, 48), 64, (64, 48)), ((16, 17, 128, 128), 128, (64, 48)))
SETS = 2


def plain_loss(maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Equations 14 and 15 of SIMPLE in plain PyTorch, in float32."""
    crops = plain(maps.float(), boxes, (targets.shape[3], targets.shape[4]))
    distance = (crops - targets.float()).square().sum((3, 4))
    return (weight * distance).sum() / (targets.shape[1] * targets.shape[2])


def trained(leaves: list[Tensor], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward, with fresh gradients each time."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return step


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape, with the targets fixed and with adapters on them."""
    forms = {"eager": plain_loss} | ({} if options.no_compile else {"torch.compile": torch.compile(plain_loss)})
    for shape, count, size in SHAPES:
        rng = torch.Generator().manual_seed(0)
        K = shape[1]
        maps = torch.rand(shape, generator=rng).to(options.device, options.dtype).requires_grad_()
        boxes = people_boxes(count, shape[0], *shape[2:]).to(options.device)
        values = torch.rand(SETS, count, K, *size, generator=rng).to(options.device, options.dtype)
        weight = torch.ones(SETS, count, K, device=options.device)
        inputs = (maps.detach(), boxes, values, weight)
        torch.testing.assert_close(
            mimic_loss(*inputs, SCALE, sampling_ratio=RATIO), plain_loss(*inputs), rtol=1e-4, atol=0
        )
        for adapters in (False, True):
            targets = values.detach().requires_grad_(adapters)
            leaves = [maps, targets] if adapters else [maps]
            ours = trained(
                leaves, lambda m=maps, b=boxes, t=targets, w=weight: mimic_loss(m, b, t, w, SCALE, sampling_ratio=RATIO)
            )
            baselines = {
                label: trained(leaves, lambda f=f, m=maps, b=boxes, t=targets, w=weight: f(m, b, t, w))
                for label, f in forms.items()
            }
            moved = (3 * maps.numel() + (3 if adapters else 2) * targets.numel()) * maps.element_size()
            title = f"{list(shape)}, {count} boxes to {size[0]}x{size[1]}, {str(options.dtype).removeprefix('torch.')}"
            yield Case(f"{title}, targets {'trained' if adapters else 'fixed'}, both ways", ours, baselines, moved)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("mimic_loss", cases(options), options)
