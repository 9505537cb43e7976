"""`simulated_heatmap_loss` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-9  # added to the squared sigmas, as released


def _axis(centre: Tensor, sigma: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A Gaussian along one axis `[..., size]`, the distances to its centre, its variance `[..., 1]`."""
    distance = torch.arange(size, dtype=centre.dtype, device=centre.device) - size * centre[..., None]
    variance = sigma[..., None].square() + EPSILON
    return torch.exp(-0.5 * distance.square() / variance), distance, variance


def simulated_heatmaps(coords: Tensor, sigmas: Tensor, size: tuple[int, int]) -> Tensor:
    """The maps `[B, K, H, W]` of `size` (height, width) that `simulated_heatmap_loss` never stores. Differentiable."""
    across, _, _ = _axis(coords[..., 0], sigmas[..., 0], size[1])
    down, _, _ = _axis(coords[..., 1], sigmas[..., 1], size[0])
    return down[..., :, None] * across[..., None, :]


def _kept(
    coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres, sigmas, teacher and weight `[B, K]`, with plain numbers where the weight is 0."""
    weight = coords.new_ones(coords.shape[:2]) if weight is None else weight.detach().to(coords.dtype)
    used = weight != 0
    point, pixel = used[..., None], used[..., None, None]
    target = torch.where(pixel, teacher.detach().to(coords.dtype), 0)
    return torch.where(point, coords, 0.5), torch.where(point, sigmas, 1.0), target, weight


def simulated_heatmap_loss(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """The loss, a scalar; see `posekd.ops.simulated_heatmap_loss`. Differentiable, twice as well."""
    coords, sigmas, target, weight = _kept(coords, sigmas, teacher, weight)
    difference = simulated_heatmaps(coords, sigmas, (teacher.shape[2], teacher.shape[3])) - target
    return (weight[..., None, None] * difference).square().sum() / max(teacher.numel(), 1)


def simulated_heatmap_stats(coords: Tensor, sigmas: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """Per map `[B, K, 5]`: the sum of `(w d)^2`, and the loss's derivatives by x, y, sigma_x and sigma_y, written out.

    Where nothing is left of a Gaussian its derivative is 0, however far the centre is.
    """
    coords, sigmas, target, weight = _kept(coords, sigmas, teacher, weight)
    H, W = teacher.shape[2:]
    across, u, variance_x = _axis(coords[..., 0], sigmas[..., 0], W)
    down, v, variance_y = _axis(coords[..., 1], sigmas[..., 1], H)
    difference = down[..., :, None] * across[..., None, :] - target
    columns, rows = (difference * down[..., :, None]).sum(-2), (difference * across[..., None, :]).sum(-1)
    factor = 2 * weight.square() / max(teacher.numel(), 1)

    def moment(sums: Tensor, profile: Tensor, distance: Tensor, power: int) -> Tensor:
        return (sums * torch.where(profile == 0, 0, profile * distance**power)).sum(-1) * factor

    x, y, xx, yy = (
        moment(sums, profile, distance, power)
        for power in (1, 2)
        for sums, profile, distance in ((columns, across, u), (rows, down, v))
    )
    inverse_x, inverse_y = 1 / variance_x[..., 0], 1 / variance_y[..., 0]
    return torch.stack(
        [
            (weight[..., None, None] * difference).square().sum((-2, -1)),
            W * (inverse_x * x),
            H * (inverse_y * y),
            (inverse_x * xx) * (inverse_x * sigmas[..., 0]),
            (inverse_y * yy) * (inverse_y * sigmas[..., 1]),
        ],
        -1,
    )
