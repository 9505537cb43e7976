"""`corner_pool` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

# direction -> (dimension of the scan, whether it runs from the last index to the first)
SCANS = {"top": (2, True), "bottom": (2, False), "left": (3, True), "right": (3, False)}


def corner_pool_heads(x: Tensor, direction: str, ties: str = "first") -> Tensor:
    """Where a maximum takes over from those before it in the scan: bool `[N, C, H, W]`."""
    dim, descending = SCANS[direction]
    if x.numel() == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    x = x.detach().flip(dim) if descending else x.detach()
    y = x.cummax(dim).values  # NaN wins, and stays
    before = y.narrow(dim, 0, x.shape[dim] - 1)
    later = x.narrow(dim, 1, x.shape[dim] - 1)
    if ties == "last":
        takes_over = (later >= before) | later.isnan()
    else:
        takes_over = (later > before) | (later.isnan() & ~before.isnan())
    heads = torch.cat([torch.ones_like(x.narrow(dim, 0, 1), dtype=torch.bool), takes_over], dim)
    return heads.flip(dim) if descending else heads


def owners(heads: Tensor, direction: str) -> Tensor:
    """The index, along the scan's dimension, of the head that every output equals: int64 `[N, C, H, W]`."""
    dim, descending = SCANS[direction]
    if heads.numel() == 0:
        return torch.zeros_like(heads, dtype=torch.int64)
    shape = [-1 if d == dim else 1 for d in range(4)]
    index = torch.arange(heads.shape[dim], device=heads.device).view(shape).expand(heads.shape)
    if descending:
        return torch.where(heads, index, heads.shape[dim]).flip(dim).cummin(dim).values.flip(dim)
    return torch.where(heads, index, -1).cummax(dim).values


def corner_pool(x: Tensor, direction: str, ties: str = "first") -> Tensor:
    """Running maximum of `x` `[N, C, H, W]`; see `posekd.ops.corner_pool`. Differentiable."""
    dim, _ = SCANS[direction]
    return x.gather(dim, owners(corner_pool_heads(x, direction, ties), direction))


def corner_pool_backward(dy: Tensor, heads: Tensor, direction: str) -> Tensor:
    """The derivative of `corner_pool`: every head gets the sum of its segment, in float32 at least."""
    dim, _ = SCANS[direction]
    wide = dy.to(torch.promote_types(dy.dtype, torch.float32))
    return torch.zeros_like(wide).scatter_add(dim, owners(heads, direction), wide).to(dy.dtype)


def pack_bits(bits: Tensor) -> Tensor:
    """Bool `[..., W]` as int32 `[..., ceil(W / 32)]`: bit i of word w is element `32 w + i`."""
    width = bits.shape[-1]
    words = (width + 31) // 32
    padded = torch.nn.functional.pad(bits.long(), (0, 32 * words - width)).unflatten(-1, (words, 32))
    packed = (padded << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def unpack_bits(words: Tensor, width: int) -> Tensor:
    """The inverse of `pack_bits`."""
    bits = words[..., None].long() >> torch.arange(32, device=words.device) & 1
    return bits.flatten(-2)[..., :width].bool()
