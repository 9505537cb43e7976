"""Maps for the tests of the pooling ops, and how close to float64 their gradients must come."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def make_map(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, special: bool = False) -> Tensor:
    """Small integers, so that equal maxima are common; with `special`, NaN and both infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, shape, generator=generator).to(dtype)
    if special:
        kind = torch.rand(shape, generator=generator)
        x[kind < 0.02] = math.nan
        x[(kind > 0.02) & (kind < 0.04)] = math.inf
        x[kind > 0.5] = -math.inf
    return x


def upstream_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A gradient of the result."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
