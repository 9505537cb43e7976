"""center_pool against the plain closed form, CenterNet's chain of four cummax scans, torch.compile and a copy.

The kernels alone run on buffers that are reused ("warm"), beside a warm `copy_` of one map; through autograd every
result is fresh.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from posekd.ops import center_pool, library

from ..harness import Case, options_from, run
from .corner_pool import by_cummax

SHAPES = ((4, 256, 128, 128), (8, 128, 128, 128), (1, 128, 64, 64))


def closed_form(a: Tensor, b: Tensor) -> Tensor:
    """Column maximum plus row maximum in two reductions, with the gradient to one element each."""
    return a.max(2, keepdim=True).values + b.max(3, keepdim=True).values


def chain(a: Tensor, b: Tensor) -> Tensor:
    """The four chained scans of the public implementations."""
    vertical = by_cummax(by_cummax(a, "top"), "bottom")
    return vertical + by_cummax(by_cummax(b, "left"), "right")


def trained(a: Tensor, b: Tensor, function: Callable[[Tensor, Tensor], Tensor], dy: Tensor) -> Callable[[], None]:
    """Forward and backward, with fresh results each time."""

    def step() -> None:
        a.grad = b.grad = None
        function(a, b).backward(dy)

    return step


def kernel_cases(title: str, a: Tensor, b: Tensor, dy: Tensor) -> Iterator[Case]:
    """Both kernels on reused buffers."""
    N, C, H, W = a.shape
    size = a.numel() * a.element_size()
    y, second = torch.zeros_like(a), torch.zeros_like(a)
    columns, rows = (torch.zeros((N, C, n), dtype=torch.int32, device=a.device) for n in (W, H))
    core, threads = library.core(), library.threads
    copy = {"copy_, warm": lambda: y.copy_(a)}
    forward = lambda: core.center_pool_forward(a, b, y, columns, rows, threads())  # noqa: E731
    backward = lambda: core.center_pool_backward(dy, columns, rows, y, second, threads())  # noqa: E731
    yield Case(f"{title}, forward kernel, warm", forward, copy, 3 * size)
    yield Case(f"{title}, backward kernel, warm", backward, copy, 3 * size)
    one = lambda: core.center_pool_forward(a, None, y, columns, rows, threads())  # noqa: E731
    one_backward = lambda: core.center_pool_backward(dy, columns, rows, y, None, threads())  # noqa: E731
    yield Case(f"{title}, one map, forward kernel, warm", one, copy, 2 * size)
    yield Case(f"{title}, one map, backward kernel, warm", one_backward, copy, 2 * size)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Kernels alone, then through autograd."""
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        a, b, dy = (torch.randn(shape, generator=generator).to(options.device, options.dtype) for _ in range(3))
        title = f"{list(shape)} {str(options.dtype).removeprefix('torch.')}"
        if options.device == "cuda" or library.core() is not None:
            yield from kernel_cases(title, a, b, dy)
        for form in (closed_form, chain):
            if not torch.equal(center_pool(a, b), form(a, b)):
                raise RuntimeError(f"center_pool and {form.__name__} differ: {title}")
        a.requires_grad_()
        b.requires_grad_()
        baselines = {
            "closed form": trained(a, b, closed_form, dy),
            "four cummax": trained(a, b, chain, dy),
        }
        if not options.no_compile:
            baselines["closed form, torch.compile"] = trained(a, b, torch.compile(closed_form), dy)
        size = a.numel() * a.element_size()
        ours = trained(a, b, center_pool, dy)
        yield Case(f"{title}, forward + backward, fresh", ours, baselines, 6 * size)


def main(argv: Sequence[str] | None = None) -> None:
    options = options_from(argv, __doc__.splitlines()[0])
    run("center_pool", cases(options), options)
