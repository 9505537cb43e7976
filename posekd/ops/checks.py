"""Validation shared by the ops: the one place where arguments are checked, with the offending value in the message."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensor(name: str, value: object, dims: str, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Checks that `value` is a tensor with the dimensions in `dims` (such as `"B K H W"`) and an allowed dtype."""
    if type(value) is not Tensor and not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim != dims.count(" ") + 1:
        expected = dims.split()
        raise ValueError(
            f"{name} must have {len(expected)} dimensions [{', '.join(expected)}], got shape {tuple(value.shape)}"
        )
    if value.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {str(value.dtype).removeprefix('torch.')}")


def constant(x: Tensor) -> Tensor:
    """`x` without a gradient: itself, nearly always."""
    return x.detach() if x.requires_grad else x


def check_shape(name: str, value: Tensor, shape: Sequence[int], like: str) -> None:
    """Checks that `value` has `shape`, which is that of the argument named `like`."""
    if value.shape != shape and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)} to match {like}, got {tuple(value.shape)}")


def check_device(name: str, value: Tensor, other: Tensor, like: str) -> None:
    """Checks that `value` is on the device of `other`."""
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}, but {like} is on {other.device}: move one of them")


def check_beside(
    name: str,
    value: Tensor,
    dims: str,
    shape: Sequence[int],
    other: Tensor,
    like: str,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """Checks that `value` has `dims`, a dtype of `dtypes`, the given `shape` and the device of `other`, the argument
    `like`.
    """
    if type(value) is Tensor and value.shape == shape and value.dtype in dtypes and value.device == other.device:
        return  # nearly always
    check_tensor(name, value, dims, dtypes)
    check_shape(name, value, shape, like)
    check_device(name, value, other, like)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_number(name: str, value: object) -> None:
    """Checks that `value` is a real number of Python or NumPy."""
    if type(value) is float or type(value) is int:  # nearly always, and asking an abstract class takes long
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_positive(name: str, value: float) -> None:
    """Checks that `value` is a positive, finite number."""
    if type(value) is float and 0 < value < math.inf:
        return  # nearly always
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_dtype(name: str, value: object, dtypes: Sequence[torch.dtype] = FLOATS) -> None:
    """Checks that `value` is one of `dtypes`."""
    if value not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {allowed}, got {str(value).removeprefix('torch.')}")


def is_whole(value: object) -> bool:
    """Whether `value` is a whole number of Python, NumPy or a traced shape."""
    if type(value) is int:  # nearly always, and asking an abstract class takes long
        return True
    return isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)


def check_size(name: str, value: Sequence[int]) -> None:
    """Checks that `value` is `(height, width)`, whole numbers, both at least 1."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and min(value) > 0:
        return  # nearly always
    sides = tuple(value) if isinstance(value, (tuple, Iterable)) else (None,)
    if not all(map(is_whole, sides)):
        raise TypeError(f"{name} must be (height, width), two whole numbers, got {value!r}")
    if len(sides) != 2 or sides[0] < 1 or sides[1] < 1:
        raise ValueError(f"{name} must be (height, width), both at least 1, got {sides}")
