"""distill_loss against eager PyTorch and torch.compile: forward + backward, and forward alone.

The baselines are the loss as one writes it in PyTorch (`log_softmax`, squares, means), not our reference, which pays
for masks and weights that these cases do not have. With keypoints as labels they also draw the target maps, from a
precomputed outer product of Gaussians: the fastest plain form.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import distill_loss

from ..harness import Case, options_from, run

SHAPES = ((64, 17, 64, 48), (32, 17, 128, 128))
ALPHA, BETA, SIGMA = 0.15, 0.075, 2.0


def plain(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """MAPD's loss in plain PyTorch, in float32."""
    s, t, g = student.float(), teacher.float(), target.float()
    log_s, log_t = (x.flatten(2).log_softmax(-1) for x in (s, t))
    kl = (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    mse = lambda a, b: 0.5 * (a - b).square().mean()  # noqa: E731
    return ALPHA * mse(s, t) + BETA * kl + (1 - ALPHA - BETA) * mse(s, g)


def drawn(keypoints: Tensor, height: int, width: int) -> Tensor:
    """Target maps of keypoints at rounded positions, without windows."""
    centre = (keypoints[..., :2] + 0.5).floor()
    x = torch.arange(width, device=keypoints.device) - centre[..., 0, None]
    y = torch.arange(height, device=keypoints.device) - centre[..., 1, None]
    profile_x, profile_y = (torch.exp(-(d**2) / (2 * SIGMA**2)) for d in (x, y))
    return profile_y[..., :, None] * profile_x[..., None, :]


def plain_with_keypoints(student: Tensor, teacher: Tensor, keypoints: Tensor) -> Tensor:
    """The same with labels drawn on the fly."""
    return plain(student, teacher, drawn(keypoints, student.shape[2], student.shape[3]))


def trained(student: Tensor, loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Forward and backward, with a fresh gradient each time.

    Each contestant has a leaf of its own (the same memory), so that each frees its own last gradient.
    """
    leaf = student.detach().requires_grad_()

    def step() -> None:
        leaf.grad = None
        loss(leaf).backward()

    return step


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Each shape with heatmap and keypoint labels."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        B, K, H, W = shape
        student, teacher, target = (
            torch.rand(shape, generator=generator).to(options.device, options.dtype) for _ in range(3)
        )
        keypoints = torch.rand(B, K, 3, generator=generator) * torch.tensor([W, H, 0]) + torch.tensor([0, 0, 2])
        keypoints = keypoints.to(options.device)
        size = student.numel() * student.element_size()
        title = f"{list(shape)} {str(options.dtype).removeprefix('torch.')}"
        forms = {"eager": lambda f: f} | ({} if options.no_compile else {"torch.compile": torch.compile})
        for labels, values, function, maps in (
            ("heatmap target", {"target": target}, plain, 3),
            ("keypoints", {"keypoints": keypoints}, plain_with_keypoints, 2),
        ):
            (label,) = values.values()
            ours = lambda s, t=teacher, v=values: distill_loss(s, t, alpha=ALPHA, beta=BETA, **v)  # noqa: E731
            written = {name: form(function) for name, form in forms.items()}
            baselines = {
                name: trained(student, lambda s, f=f, t=teacher, v=label: f(s, t, v)) for name, f in written.items()
            }
            yield Case(f"{title}, {labels}, forward + backward", trained(student, ours), baselines, (maps + 1) * size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("distill_loss", cases(options), options)
