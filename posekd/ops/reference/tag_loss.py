"""`tag_loss` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def tag_pixels(keypoints: Tensor, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each keypoint's tag lies in an image's flat maps, int64 `[B, P, K]`, and which keypoints have one, bool."""
    x, y, visibility = keypoints.float().unbind(-1)
    inside = (visibility > 0) & (x > -1) & (y > -1) & (x < width) & (y < height)  # false for NaN
    column, row = (torch.where(inside, position, 0).trunc().long() for position in (x, y))
    channel = torch.arange(keypoints.shape[2], device=keypoints.device) if channels > 1 else 0
    return torch.where(inside, (channel * height + row) * width + column, 0), inside


def _people(tags: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances of keypoints to their person's mean tag `[B, P, K]`, the means, keypoint counts, present people."""
    wide = tags.to(torch.promote_types(tags.dtype, torch.float32))
    pixels, inside = tag_pixels(keypoints, *tags.shape[1:])
    values = torch.where(inside, wide.flatten(1).gather(1, pixels.flatten(1)).view_as(pixels), 0)
    count = inside.sum(-1)
    mean = values.sum(-1) / count.clamp(min=1)
    distance = torch.where(inside, values - mean[..., None], 0)
    return distance, mean, count, count > 0


def _pairs(present: Tensor) -> Tensor:
    """Which ordered pairs of people push each other: bool `[B, P, P]`."""
    others = ~torch.eye(present.shape[1], dtype=torch.bool, device=present.device)
    return present[:, :, None] & present[:, None, :] & others


def tag_loss(tags: Tensor, keypoints: Tensor, exponential: bool) -> tuple[Tensor, Tensor]:
    """Pull and push, `[B]` each; see `posekd.ops.tag_loss`. Differentiable."""
    distance, mean, count, present = _people(tags, keypoints)
    n = present.sum(-1)
    pull = (distance.square().sum(-1) / count.clamp(min=1)).sum(-1) / n.clamp(min=1)
    d = mean[:, :, None] - mean[:, None, :]
    similarity = torch.exp(-d.square()) if exponential else (1 - d.abs()).clamp(min=0)
    total = torch.where(_pairs(present), similarity, 0).sum((1, 2))
    return pull, 0.5 * total / (n * (n - 1)).clamp(min=1)


def tag_slopes(tags: Tensor, keypoints: Tensor, exponential: bool) -> tuple[Tensor, Tensor]:
    """The derivatives of pull `[B, P, K]` and push `[B, P]` (equal for all of a person's keypoints) by their tags."""
    distance, mean, count, present = _people(tags, keypoints)
    n, joints = present.sum(-1), count.clamp(min=1)
    pull_slope = 2 * distance / (joints * n.clamp(min=1)[:, None])[..., None]
    d = mean[:, :, None] - mean[:, None, :]
    slope = -2 * d * torch.exp(-d.square()) if exponential else torch.where(d.abs() > 1, 0, -d.sign())
    total = torch.where(_pairs(present), slope, 0).sum(-1)
    return pull_slope, total / ((n * (n - 1)).clamp(min=1)[:, None] * joints)


def tag_loss_backward(
    pull_upstream: Tensor,
    push_upstream: Tensor,
    pull_slope: Tensor,
    push_slope: Tensor,
    keypoints: Tensor,
    tags: Tensor,
) -> Tensor:
    """The gradient by `tags` (whose values do not matter); keypoints that share a pixel add up."""
    pixels, inside = tag_pixels(keypoints, *tags.shape[1:])
    slope = pull_upstream[:, None, None] * pull_slope + (push_upstream[:, None] * push_slope)[..., None]
    flat = pull_slope.new_zeros(tags.shape).flatten(1)
    flat = flat.scatter_add(1, pixels.flatten(1), torch.where(inside, slope, 0).flatten(1))
    return flat.view(tags.shape).to(tags.dtype)
