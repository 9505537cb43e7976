"""simulated_heatmap_loss against composed PyTorch, as released and with profiles, and torch.compile: both ways."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import simulated_heatmap_loss
from posekd.ops.reference import simulated_heatmap_loss as definition

from ..harness import Case, options_from, run

SHAPES = (  # B, K, H, W
    (64, 17, 64, 48),
    (32, 17, 96, 72),
    (64, 16, 64, 64),
    (256, 17, 64, 48),
)


def composed(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """The loss as one would write it from the formula: an exponential per pixel, the maps stored."""
    H, W = teacher.shape[2:]
    columns = torch.arange(W, dtype=coords.dtype, device=coords.device)
    rows = torch.arange(H, dtype=coords.dtype, device=coords.device)[:, None]
    x, y = (coords * coords.new_tensor([W, H]))[..., None, None].unbind(2)
    variance_x, variance_y = (sigmas.square() + 1e-9)[..., None, None].unbind(2)
    maps = torch.exp(-0.5 * ((columns - x) ** 2 / variance_x + (rows - y) ** 2 / variance_y))
    return (weight[..., None, None] * (maps - teacher)).square().mean()


def with_profiles(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """As well as plain PyTorch can: the maps as products of two profiles."""
    return definition.simulated_heatmap_loss(coords, sigmas, teacher, weight)


def trained(coords: Tensor, sigmas: Tensor, function: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward, with fresh gradients each time."""

    def step() -> None:
        coords.grad = sigmas.grad = None
        function().backward()

    return step


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape; sigmas around 2 pixels, a fifth of the keypoints without weight. The dtype is the teacher's."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        B, K = shape[:2]
        teacher = torch.rand(shape, generator=generator).to(options.device, options.dtype)
        coords = torch.rand(B, K, 2, generator=generator).to(options.device).requires_grad_()
        sigmas = (torch.rand(B, K, 2, generator=generator) * 2 + 1).to(options.device).requires_grad_()
        weight = (torch.rand(B, K, generator=generator) > 0.2).float().to(options.device)
        inputs = (coords, sigmas, teacher, weight)
        baselines = {"composed": composed, "two profiles": with_profiles}
        for theirs in baselines.values():
            torch.testing.assert_close(simulated_heatmap_loss(*inputs), theirs(*inputs), rtol=1e-4, atol=1e-6)
        if not options.no_compile:
            baselines["composed, torch.compile"] = torch.compile(composed)
            baselines["two profiles, torch.compile"] = torch.compile(with_profiles)
        title = f"{list(shape)} teacher {str(options.dtype).removeprefix('torch.')}, forward + backward"
        ours = trained(coords, sigmas, lambda i=inputs: simulated_heatmap_loss(*i))
        steps = {label: trained(coords, sigmas, lambda i=inputs, f=f: f(*i)) for label, f in baselines.items()}
        yield Case(title, ours, steps, teacher.numel() * teacher.element_size())


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("simulated_heatmap_loss", cases(options), options)
