"""`center_pool` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def last_argmax(x: Tensor, dim: int) -> Tensor:
    """The largest index of the maximum of `x` along `dim` (kept, of size 1); NaN is above all numbers."""
    maximum = x.detach().amax(dim, keepdim=True)
    found = (x.detach() == maximum) | (x.detach().isnan() & maximum.isnan())
    shape = [-1 if d == dim % x.ndim else 1 for d in range(x.ndim)]
    index = torch.arange(x.shape[dim], device=x.device).view(shape)
    return torch.where(found, index, -1).amax(dim, keepdim=True)


def center_pool(x_vertical: Tensor, x_horizontal: Tensor | None = None) -> Tensor:
    """Column maximum plus row maximum of `[N, C, H, W]` maps; see `posekd.ops.center_pool`. Differentiable."""
    other = x_vertical if x_horizontal is None else x_horizontal
    if x_vertical.numel() == 0:
        return x_vertical + other
    column = x_vertical.gather(2, last_argmax(x_vertical, 2))
    row = other.gather(3, last_argmax(other, 3))
    return column + row


def center_pool_backward(dy: Tensor, column_argument: Tensor, row_argument: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives by the two maps, from the rows `[N, C, W]` and columns `[N, C, H]` of the maxima.

    In float32 at least, so that the two can be added up before they are rounded.
    """
    wide = dy.to(torch.promote_types(dy.dtype, torch.float32))
    zeros = torch.zeros_like(wide)
    vertical = zeros.scatter(2, column_argument[:, :, None].long(), wide.sum(2, keepdim=True))
    horizontal = zeros.scatter(3, row_argument[..., None].long(), wide.sum(3, keepdim=True))
    return vertical, horizontal
