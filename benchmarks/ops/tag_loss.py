"""tag_loss against HigherHRNet's loop over people, the vectorised form and torch.compile: forward + backward."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import tag_loss
from posekd.ops.reference import tag_loss as definition

from ..harness import Case, options_from, run

SHAPES = (  # B, K, H, W, people
    (16, 17, 128, 128, 30),
    (16, 17, 160, 160, 30),
    (16, 17, 128, 128, 2),
    (32, 17, 128, 128, 30),
    (64, 17, 64, 48, 30),
)


def one_image(tags: Tensor, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """HigherHRNet's AE loss of an image, by its algorithm: a Python loop over people.

    Args:
        tags: `[K * H * W]`.
        pixels: int64 `[P, K]`, where each keypoint's tag lies.
        visible: bool `[P, K]`, on the CPU, so that the loop need not wait for a device.
    """
    means, pull = [], tags.new_zeros(())
    for person, seen in zip(pixels, visible, strict=True):
        if not seen.any():
            continue
        values = tags[person[seen.to(tags.device)]]
        means.append(values.mean())
        pull = pull + (values - means[-1]).square().mean()
    n = len(means)
    if n < 2:
        return pull, tags.new_zeros(())
    mean = torch.stack(means)
    similarity = torch.exp(-(mean[:, None] - mean[None, :]).square())
    return pull / n, (similarity.sum() - n) / ((n - 1) * n) * 0.5


def loop(tags: Tensor, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """All images, one after the other."""
    flat = tags.float().flatten(1)
    images = [one_image(image, p, v) for image, p, v in zip(flat, pixels, visible, strict=True)]
    pulls, pushes = zip(*images, strict=True)
    return torch.stack(pulls), torch.stack(pushes)


def vectorised(tags: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """The same for all people at once, in plain PyTorch."""
    return definition.tag_loss(tags, keypoints, True)


def trained(tags: Tensor, function: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Forward and backward, with a fresh gradient each time."""

    def step() -> None:
        tags.grad = None
        pull, push = function()
        (pull.mean() + push.mean()).backward()

    return step


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape; people at random positions, a tenth of their keypoints invisible."""
    generator = torch.Generator().manual_seed(0)
    for B, K, H, W, P in SHAPES:
        tags = torch.randn(B, K, H, W, generator=generator).to(options.device, options.dtype).requires_grad_()
        position = torch.rand(B, P, K, 2, generator=generator) * torch.tensor([W, H])
        visibility = (torch.rand(B, P, K, 1, generator=generator) > 0.1).float()
        keypoints = torch.cat([position, visibility], -1).to(options.device)
        pixels, inside = definition.tag_pixels(keypoints, K, H, W)
        visible = inside.cpu()
        baselines = {
            "loop over people": lambda t=tags, p=pixels, v=visible: loop(t, p, v),
            "vectorised": lambda t=tags, k=keypoints: vectorised(t, k),
        }
        if not options.no_compile:
            compiled = torch.compile(vectorised)
            baselines["vectorised, torch.compile"] = lambda t=tags, k=keypoints, f=compiled: f(t, k)
        for theirs in (loop(tags, pixels, visible), vectorised(tags, keypoints)):
            torch.testing.assert_close(tag_loss(tags, keypoints), theirs, rtol=1e-4, atol=1e-6)
        title = f"{[B, K, H, W]} {str(options.dtype).removeprefix('torch.')}, {P} people, forward + backward"
        ours = trained(tags, lambda t=tags, k=keypoints: tag_loss(t, k))
        steps = {label: trained(tags, function) for label, function in baselines.items()}
        yield Case(title, ours, steps, tags.numel() * tags.element_size())


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("tag_loss", cases(options), options)
