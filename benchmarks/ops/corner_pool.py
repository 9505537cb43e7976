"""corner_pool and its sums against `cummax` (mmcv's corner pooling today), torch.compile and a copy.

The kernels alone run on buffers that are reused ("warm"), beside a warm `copy_` of the same map. Through autograd
every result is fresh, and on the CPU the kernel pays for zeroing its pages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import corner_pool, corner_pool_add, corner_pool_sum, library
from posekd.ops.corner_pool import DIRECTIONS

from ..harness import Case, options_from, run

SHAPES = ((4, 256, 128, 128), (8, 128, 128, 128), (1, 128, 64, 64))


def by_cummax(x: Tensor, direction: str) -> Tensor:
    """The `CornerPool.forward` of mmcv for torch >= 1.5: flip, cummax, flip."""
    dim, descending = (2 if direction in ("top", "bottom") else 3), direction in ("top", "left")
    y, _ = (x.flip(dim) if descending else x).cummax(dim)
    return y.flip(dim) if descending else y


def trained(x: Tensor, function: Callable[[Tensor], Tensor], dy: Tensor) -> Callable[[], None]:
    """Forward and backward, with a fresh result and a fresh gradient each time."""

    def step() -> None:
        x.grad = None
        function(x).backward(dy)

    return step


def kernel_cases(title: str, x: Tensor, dy: Tensor) -> Iterator[Case]:
    """Both kernels of each direction on reused buffers."""
    size = x.numel() * x.element_size()
    y, other = torch.zeros_like(x), torch.rand_like(x, dtype=torch.float32).to(x.dtype)
    words = (x.shape[3] + 31) // 32
    heads = torch.zeros((*x.shape[:3], words), dtype=torch.int32, device=x.device)
    core, threads = library.core(), library.threads
    copy = {"copy_, warm": lambda: y.copy_(x)}
    bits = heads.numel() * 4
    for i, direction in enumerate(DIRECTIONS):
        forward = lambda i=i: core.corner_pool_forward(x, None, y, heads, i, False, threads())  # noqa: E731
        backward = lambda i=i: core.corner_pool_backward(dy, heads, y, i, threads())  # noqa: E731
        add = lambda i=i: core.corner_pool_forward(x, other, y, None, i, False, threads())  # noqa: E731
        yield Case(f"{title}, {direction}, forward kernel, warm", forward, copy, 2 * size + bits)
        yield Case(f"{title}, {direction}, backward kernel, warm", backward, copy, 2 * size + bits)
        yield Case(f"{title}, {direction}, forward kernel with a summand, warm", add, copy, 3 * size)


def trained_case(
    title: str, x: Tensor, dy: Tensor, direction: str, forms: dict[str, Callable[..., Callable[[Tensor], Tensor]]]
) -> Case:
    """Forward and backward through autograd."""
    leaf = x.clone().requires_grad_()
    baselines = {label: trained(leaf, form(lambda t: by_cummax(t, direction)), dy) for label, form in forms.items()}
    ours = trained(leaf, lambda t: corner_pool(t, direction), dy)
    size = x.numel() * x.element_size()
    return Case(f"{title}, {direction}, forward + backward, fresh", ours, baselines, 4 * size)


def sum_cases(title: str, x: Tensor, other: Tensor) -> Iterator[Case]:
    """The fused sums against the operations one after the other."""
    size = 3 * x.numel() * x.element_size()
    apart = {"corner_pool, then +": lambda: other + corner_pool(x, "top")}
    yield Case(f"{title}, top, corner_pool_add, fresh", lambda: corner_pool_add(x, other, "top"), apart, size)
    two = {"corner_pool twice, then +": lambda: corner_pool(x, "top") + corner_pool(other, "left")}
    ours = lambda: corner_pool_sum(x, other, ("top", "left"))  # noqa: E731
    yield Case(f"{title}, top and left, corner_pool_sum, fresh", ours, two, size)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Kernels alone, then through autograd, for each shape and direction."""
    generator = torch.Generator().manual_seed(0)
    forms = {"cummax": lambda f: f}
    if not options.no_compile:
        forms["cummax, torch.compile"] = torch.compile
    for shape in SHAPES:
        x, dy = (torch.randn(shape, generator=generator).to(options.device, options.dtype) for _ in range(2))
        title = f"{list(shape)} {str(options.dtype).removeprefix('torch.')}"
        if options.device == "cuda" or library.core() is not None:
            yield from kernel_cases(title, x, dy)
        for direction in DIRECTIONS:
            if not torch.equal(corner_pool(x, direction), by_cummax(x, direction)):
                raise RuntimeError(f"corner_pool and cummax differ: {title}, {direction}")
            yield trained_case(title, x, dy, direction, forms)
        yield from sum_cases(title, x, dy)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("corner_pool", cases(options), options)
