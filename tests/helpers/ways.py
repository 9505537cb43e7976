"""How a test sees which way a call took, and makes it take the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from posekd.ops import library

Call = Callable[[Tensor], Tensor]
GRADIENT_BY_FORWARD = ("distill_loss",)  # on the CPU the first gradient comes along with the loss


def op_of(name: str) -> str:
    """The op below the public function `name`."""
    return "corner_pool" if name == "corner_pool_add" else name


def gradient_op_of(name: str) -> str:
    """The op of its backward pass."""
    return ("corner_pool" if name.startswith("corner_pool") else name) + "_backward"


@contextmanager
def noted() -> Iterator[list[str]]:
    """The ops that are called past the dispatcher, in order."""
    taken: list[str] = []

    def noting(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            taken.append(name)
            return function(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for table in (library._functions, library._implementations):
            for name, by_device in table.items():
                for device, function in by_device.items():
                    patch.setitem(by_device, device, noting(name, function))
        yield taken


@contextmanager
def by_dispatcher() -> Iterator[None]:
    """Every call takes the dispatcher, as it does where something is at work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_plain_device", lambda args, profiled=False: None)
        yield


def both(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient by `x` of its sum with weights that differ."""
    x = x.detach().requires_grad_()
    y = call(x)
    weights = torch.arange(1, y.numel() + 1, dtype=y.dtype).reshape(y.shape) / 8
    return y.detach(), torch.autograd.grad(y, x, weights)[0]


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    """The same bits in the same places."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert a.stride() == b.stride()
