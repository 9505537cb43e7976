"""Center pooling (CenterNet, Duan et al. 2019): column maximum plus row maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import center_pool as definition

LARGEST_ON_DEVICE = 2048  # height and width: what is known of a plane's rows and columns fits into shared memory


def _outputs(x: Tensor, keep_arguments: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, C, H, W = x.shape
    column_shape, row_shape = ((N, C, W), (N, C, H)) if keep_arguments else ((0,), (0,))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(column_shape, dtype=torch.int32), x.new_empty(row_shape, dtype=torch.int32)


def _forward_kernel(x: Tensor, other: Tensor | None, keep_arguments: bool) -> tuple[Tensor, Tensor, Tensor]:
    y, columns, rows = _outputs(x, keep_arguments)
    library.core().center_pool_forward(
        x.contiguous(), None if other is None else other.contiguous(), y,
        columns if keep_arguments else None, rows if keep_arguments else None, library.threads(),
    )  # fmt: skip
    return y, columns, rows


def _forward_reference(x: Tensor, other: Tensor | None, keep_arguments: bool) -> tuple[Tensor, Tensor, Tensor]:
    y = definition.center_pool(x, other).contiguous()
    _, columns, rows = _outputs(x, keep_arguments)
    if keep_arguments and x.numel() > 0:
        columns = definition.last_argmax(x, 2).squeeze(2).int()
        rows = definition.last_argmax(x if other is None else other, 3).squeeze(3).int()
    return y, columns, rows


def _forward_fake(x: Tensor, other: Tensor | None, keep_arguments: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, keep_arguments)


def _gradients(dy: Tensor, two_maps: bool) -> tuple[Tensor, Tensor]:
    vertical = torch.empty_like(dy, memory_format=torch.contiguous_format)
    return vertical, torch.empty_like(vertical) if two_maps else dy.new_empty((0,))


def _backward_brief(dy: Tensor, columns: Tensor, rows: Tensor, two_maps: bool) -> tuple[Tensor, Tensor | None]:
    vertical = torch.empty_like(dy, memory_format=torch.contiguous_format)
    horizontal = torch.empty_like(vertical) if two_maps else None
    library.core().center_pool_backward(
        dy.contiguous(), columns.contiguous(), rows.contiguous(), vertical, horizontal, library.threads()
    )
    return vertical, horizontal


def _backward_kernel(dy: Tensor, columns: Tensor, rows: Tensor, two_maps: bool) -> tuple[Tensor, Tensor]:
    vertical, horizontal = _backward_brief(dy, columns, rows, two_maps)
    return vertical, dy.new_empty((0,)) if horizontal is None else horizontal


def _backward_reference(dy: Tensor, columns: Tensor, rows: Tensor, two_maps: bool) -> tuple[Tensor, Tensor]:
    if dy.numel() == 0:
        return _gradients(dy, two_maps)
    vertical, horizontal = definition.center_pool_backward(dy, columns, rows)
    if two_maps:
        return vertical.to(dy.dtype).contiguous(), horizontal.to(dy.dtype).contiguous()
    return (vertical + horizontal).to(dy.dtype).contiguous(), dy.new_empty((0,))


def _backward_fake(dy: Tensor, columns: Tensor, rows: Tensor, two_maps: bool) -> tuple[Tensor, Tensor]:
    return _gradients(dy, two_maps)


def _supports(x: Tensor, *rest: Any) -> bool:
    """The device kernels have no float64 and a limit of size; an empty batch has nothing to launch for."""
    if x.numel() == 0 or not library.on_device(x):
        return x.numel() > 0
    return x.dtype != torch.float64 and max(x.shape[2:]) <= LARGEST_ON_DEVICE


_forward = library.define(
    "center_pool(Tensor x_vertical, Tensor? x_horizontal, bool keep_arguments) -> (Tensor, Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=_supports,
)
_backward = library.define(
    "center_pool_backward(Tensor dy, Tensor columns, Tensor rows, bool two_maps) -> (Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    supports=_supports,
    brief=_backward_brief,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, other, ctx.kept_arguments = inputs
    ctx.two_maps = other is not None
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], output[2])


def _gradient(ctx: Any, dy: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None
    if not ctx.kept_arguments:
        raise RuntimeError("posekd::center_pool was called with keep_arguments=False: it has no derivative")
    vertical, horizontal = _backward(dy, *ctx.saved_tensors, ctx.two_maps)
    return vertical, horizontal if ctx.two_maps else None, None


library.differentiable("center_pool", _gradient, _setup, results=1)
library.no_double_backward("center_pool_backward")


def center_pool(x_vertical: Tensor, x_horizontal: Tensor | None = None) -> Tensor:
    """Every pixel's column maximum of one map plus its row maximum of another.

    Equal to CenterNet's chain of four corner pools, `bottom(top(x_vertical)) + right(left(x_horizontal))`, with
    one pass over each map. NaN wins. The gradient of a column (row) goes to its maximum, and among equal ones to
    the one of the largest index, as there. It is deterministic, its sums are float32 (float64 for float64), and
    all that is kept for it is where the maxima are: H + W int32 per plane.

    Args:
        x_vertical: `[N, C, H, W]`, float32, float16, bfloat16 or float64, any strides.
        x_horizontal: like `x_vertical`; None takes both maxima from the one map. A different dtype is promoted.

    Returns:
        `[N, C, H, W]`, contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import center_pool
        >>> x = torch.tensor([[1.0, 5.0], [2.0, 3.0]])[None, None]  # [1, 1, 2, 2]
        >>> center_pool(x)  # each pixel: its column's maximum + its row's maximum
        tensor([[[[ 7., 10.],
                  [ 5.,  8.]]]])
    """
    checks.check_tensor("x_vertical", x_vertical, "N C H W")
    requires_grad = x_vertical.requires_grad
    if x_horizontal is not None:
        checks.check_tensor("x_horizontal", x_horizontal, "N C H W")
        checks.check_shape("x_horizontal", x_horizontal, x_vertical.shape, "x_vertical")
        checks.check_device("x_horizontal", x_horizontal, x_vertical, "x_vertical")
        dtype = torch.promote_types(x_vertical.dtype, x_horizontal.dtype)
        x_vertical, x_horizontal = x_vertical.to(dtype), x_horizontal.to(dtype)
        requires_grad |= x_horizontal.requires_grad
    # Without a gradient nothing but the result is written.
    return _forward(x_vertical, x_horizontal, requires_grad and torch.is_grad_enabled())[0]
