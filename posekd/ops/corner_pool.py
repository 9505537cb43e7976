"""Corner pooling (CornerNet, Law and Deng 2018): running maxima along columns or rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import corner_pool as definition

DIRECTIONS = ("top", "bottom", "left", "right")  # in the order of csrc/corner_pool/corner_pool.h
TIES = ("first", "last")


def _outputs(x: Tensor, keep_heads: bool) -> tuple[Tensor, Tensor]:
    N, C, H, W = x.shape
    heads_shape = (N, C, H, (W + 31) // 32) if keep_heads else (0,)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(heads_shape, dtype=torch.int32)


def _forward_kernel(
    x: Tensor, other: Tensor | None, direction: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor]:
    y, heads = _outputs(x, keep_heads)
    library.core().corner_pool_forward(
        x.contiguous(), None if other is None else other.contiguous(), y, heads if keep_heads else None,
        direction, last_wins, library.threads(),
    )  # fmt: skip
    return y, heads


def _forward_reference(
    x: Tensor, other: Tensor | None, direction: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor]:
    name, ties = DIRECTIONS[direction], TIES[int(last_wins)]
    y = definition.corner_pool(x, name, ties).contiguous()
    _, heads = _outputs(x, keep_heads)
    if keep_heads:
        heads = definition.pack_bits(definition.corner_pool_heads(x, name, ties))
    return (y if other is None else (other + y).contiguous()), heads


def _forward_fake(
    x: Tensor, other: Tensor | None, direction: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor]:
    return _outputs(x, keep_heads)


def _backward_kernel(dy: Tensor, heads: Tensor, direction: int) -> Tensor:
    dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
    library.core().corner_pool_backward(dy.contiguous(), heads.contiguous(), dx, direction, library.threads())
    return dx


def _backward_reference(dy: Tensor, heads: Tensor, direction: int) -> Tensor:
    bits = definition.unpack_bits(heads, dy.shape[3])
    return definition.corner_pool_backward(dy, bits, DIRECTIONS[direction]).contiguous()


def _backward_fake(dy: Tensor, heads: Tensor, direction: int) -> Tensor:
    return torch.empty_like(dy, memory_format=torch.contiguous_format)


def _sum_kernel(
    vertical: Tensor, horizontal: Tensor, down: int, across: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, down_heads = _outputs(vertical, keep_heads)
    across_heads = torch.empty_like(down_heads)
    library.core().corner_pool_sum_forward(
        vertical.contiguous(), horizontal.contiguous(), y, down_heads if keep_heads else None,
        across_heads if keep_heads else None, down, across, last_wins, library.threads(),
    )  # fmt: skip
    return y, down_heads, across_heads


def _sum_reference(
    vertical: Tensor, horizontal: Tensor, down: int, across: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    pooled, across_heads = _forward_reference(horizontal, None, across, last_wins, keep_heads)
    y, down_heads = _forward_reference(vertical, pooled, down, last_wins, keep_heads)
    return y, down_heads, across_heads


def _sum_fake(
    vertical: Tensor, horizontal: Tensor, down: int, across: int, last_wins: bool, keep_heads: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, heads = _outputs(vertical, keep_heads)
    return y, heads, torch.empty_like(heads)


def _supports(x: Tensor, *rest: Any) -> bool:
    """The device kernels have no float64, and a limit of size; an empty batch has nothing to launch for."""
    if x.numel() == 0 or not library.on_device(x):
        return x.numel() > 0
    return x.dtype != torch.float64 and max(x.shape[2:]) < 2**28


_forward = library.define(
    "corner_pool(Tensor x, Tensor? other, int direction, bool last_wins, bool keep_heads) -> (Tensor, Tensor)",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=_forward_fake,
    supports=_supports,
)
_backward = library.define(
    "corner_pool_backward(Tensor dy, Tensor heads, int direction) -> Tensor",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=_backward_fake,
    supports=_supports,
)
_sum = library.define(
    "corner_pool_sum(Tensor vertical, Tensor horizontal, int down, int across, bool last_wins, bool keep_heads) -> "
    "(Tensor, Tensor, Tensor)",
    kernel=_sum_kernel,
    reference=_sum_reference,
    fake=_sum_fake,
    supports=_supports,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, other, ctx.direction, _, ctx.kept_heads = inputs
    ctx.has_other = other is not None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _gradient(ctx: Any, dy: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 5
    dx = None
    if ctx.needs_input_grad[0]:
        if not ctx.kept_heads:
            raise RuntimeError("posekd::corner_pool was called with keep_heads=False: it has no derivative by x")
        dx = _backward(dy, *ctx.saved_tensors, ctx.direction)
    return dx, dy if ctx.has_other else None, None, None, None


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, ctx.down, ctx.across, _, ctx.kept_heads = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _sum_gradient(ctx: Any, dy: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    if not ctx.kept_heads:
        raise RuntimeError("posekd::corner_pool_sum was called with keep_heads=False: it has no derivative")
    down_heads, across_heads = ctx.saved_tensors
    vertical = _backward(dy, down_heads, ctx.down) if ctx.needs_input_grad[0] else None
    horizontal = _backward(dy, across_heads, ctx.across) if ctx.needs_input_grad[1] else None
    return vertical, horizontal, None, None, None, None


library.differentiable("corner_pool", _gradient, _setup, results=1)
library.differentiable("corner_pool_sum", _sum_gradient, _setup_sum, results=1)
library.no_double_backward("corner_pool_backward")


def _pool(x: Tensor, other: Tensor | None, direction: str, ties: str) -> Tensor:
    # Without a gradient nothing but the result is written.
    keep_heads = x.requires_grad and torch.is_grad_enabled()
    return _forward(x, other, DIRECTIONS.index(direction), ties == "last", keep_heads)[0]


def _check(x: Tensor, direction: str, ties: str) -> None:
    checks.check_tensor("x", x, "N C H W")
    checks.check_choice("direction", direction, DIRECTIONS)
    checks.check_choice("ties", ties, TIES)


def corner_pool(x: Tensor, direction: str, *, ties: str = "first") -> Tensor:
    """The largest value from each pixel to the border, itself included.

    `"top"`: over the pixel and all below it (the name is that of the corner being looked for), `"bottom"`: all
    above, `"left"`: all to its right, `"right"`: all to its left. NaN wins, and stays to the end of the scan.

    The gradient goes to the element that gave the maximum. Among equal ones (NaNs are equal, and so are the two
    zeros), the scan runs from the border to the pixel and

    * `ties="first"`: the first met keeps it, the one nearest to the border, as in CornerNet and CenterNet;
    * `ties="last"`: the last met takes it, the one nearest to the pixel, as `torch.cummax` and mmcv do.

    The result is exact in every dtype. The gradient is deterministic, its sums are float32 (float64 for float64),
    and all that is kept for it is one bit per element (rows padded to 32).

    Args:
        x: `[N, C, H, W]`, float32, float16, bfloat16 or float64, any strides.
        direction: `"top"`, `"bottom"`, `"left"` or `"right"`.
        ties: `"first"` or `"last"`.

    Returns:
        `[N, C, H, W]`, contiguous, in the dtype of `x`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or value.

    Examples:
        >>> import torch
        >>> from posekd.ops import corner_pool
        >>> x = torch.tensor([1.0, 3.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
        >>> corner_pool(x, "left").flatten().tolist()
        [3.0, 3.0, 2.0, 2.0]
        >>> corner_pool(x, "right").flatten().tolist()
        [1.0, 3.0, 3.0, 3.0]
    """
    _check(x, direction, ties)
    return _pool(x, None, direction, ties)


def corner_pool_add(x: Tensor, other: Tensor, direction: str, *, ties: str = "first") -> Tensor:
    """`other + corner_pool(x, direction)` in one pass: 12 bytes of float32 traffic per element instead of 20.

    The sums of the cascade: `look + ...` before its 3x3 convolutions, and the addition of the two pools before the
    last one. Half types are added in float32 and rounded once, as PyTorch does. Tensors of different dtypes are
    promoted, in two passes.

    Args:
        x: `[N, C, H, W]`, see `corner_pool`.
        other: `[N, C, H, W]`, the summand.
        direction: see `corner_pool`.
        ties: see `corner_pool`.

    Returns:
        `[N, C, H, W]`, contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, value or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import corner_pool, corner_pool_add
        >>> x, other = torch.rand(2, 8, 32, 24), torch.rand(2, 8, 32, 24)
        >>> torch.equal(corner_pool_add(x, other, "top"), other + corner_pool(x, "top"))
        True
    """
    _check(x, direction, ties)
    checks.check_tensor("other", other, "N C H W")
    checks.check_shape("other", other, x.shape, "x")
    checks.check_device("other", other, x, "x")
    if other.dtype != x.dtype:
        return other + _pool(x, None, direction, ties)
    return _pool(x, other, direction, ties)


def corner_pool_sum(
    vertical: Tensor, horizontal: Tensor, directions: tuple[str, str], *, ties: str = "first"
) -> Tensor:
    """`corner_pool(vertical, directions[0]) + corner_pool(horizontal, directions[1])`: the end of every corner pooling.

    In one pass, 12 bytes of float32 traffic per element instead of 20; on a GPU so for maps of up to 128x128 with a
    width that is a multiple of 4, and else in two, the second of which adds. Half types are added in float32 and
    rounded once. Tensors of different dtypes are promoted.

    Args:
        vertical: `[N, C, H, W]`, see `corner_pool`; pooled along columns.
        horizontal: `[N, C, H, W]`; pooled along rows.
        directions: of the two: `"top"` or `"bottom"`, and `"left"` or `"right"`.
        ties: see `corner_pool`.

    Returns:
        `[N, C, H, W]`, contiguous.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, value or device.

    Examples:
        >>> import torch
        >>> from posekd.ops import corner_pool_sum
        >>> vertical, horizontal = torch.rand(2, 8, 32, 24), torch.rand(2, 8, 32, 24)
        >>> corner_pool_sum(vertical, horizontal, ("top", "left")).shape
        torch.Size([2, 8, 32, 24])
    """
    if not isinstance(directions, (tuple, list)) or len(directions) != 2:
        raise ValueError(f'directions must be a pair such as ("top", "left"), got {directions!r}')
    down, across = directions
    checks.check_tensor("vertical", vertical, "N C H W")
    checks.check_choice("directions[0]", down, DIRECTIONS[:2])
    checks.check_choice("ties", ties, TIES)
    checks.check_tensor("horizontal", horizontal, "N C H W")
    checks.check_choice("directions[1]", across, DIRECTIONS[2:])
    checks.check_shape("horizontal", horizontal, vertical.shape, "vertical")
    checks.check_device("horizontal", horizontal, vertical, "vertical")
    if horizontal.dtype != vertical.dtype:
        return _pool(vertical, None, down, ties) + _pool(horizontal, None, across, ties)
    keep_heads = (vertical.requires_grad or horizontal.requires_grad) and torch.is_grad_enabled()
    return _sum(vertical, horizontal, DIRECTIONS.index(down), DIRECTIONS.index(across), ties == "last", keep_heads)[0]
