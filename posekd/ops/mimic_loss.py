"""Heatmap mimicking: ROIAlign of the student's maps against target crops, fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.reference import mimic_loss as definition
from posekd.ops.roi_align import as_table, check_image_index, check_sampling, coordinates
from posekd.ops.roi_align import supports as crop_supports

_ARGUMENTS = (
    "Tensor heatmaps, Tensor boxes, Tensor targets, Tensor weight, "
    "float spatial_scale, int sampling_ratio, bool aligned"
)


def _wide(maps: Tensor) -> torch.dtype:
    return torch.float64 if maps.dtype == torch.float64 else torch.float32


def _inputs(maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The inputs as the core wants them: contiguous, boxes and weights never in half, targets in sets."""
    sets = targets.contiguous()
    if sets.ndim == 4:
        sets = sets[None]
    return maps.contiguous(), coordinates(maps, boxes), sets, library.dense(weight, _wide(maps))


def _losses(maps: Tensor, targets: Tensor) -> Tensor:
    """What the op gives, empty: a number for each set of `[M, R, K, h, w]`, or one for targets `[R, K, h, w]`."""
    sets, strides = ((targets.shape[0],), (1,)) if targets.ndim == 5 else ((), ())
    return maps.new_empty_strided(sets, strides, dtype=_wide(maps))


def _supports(maps: Tensor, boxes: Tensor, targets: Tensor, *rest: Any) -> bool:
    """Where roi_align's kernels serve; on a GPU targets may not be float64 either."""
    if targets.numel() == 0 or (library.on_device(maps) and targets.dtype == torch.float64):
        return False
    return crop_supports(maps.shape, maps.dtype, boxes, *targets.shape[-2:])


def _forward_kernel(
    maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor, scale: float, ratio: int, aligned: bool
) -> Tensor:
    check_image_index(boxes, maps.shape[0])
    inputs = _inputs(maps, boxes, targets, weight)
    loss = _losses(maps, targets)
    stats = torch.empty_like(inputs[3])
    library.core().mimic_loss_forward(
        *inputs, scale, ratio, aligned, stats, loss, library.counter(loss), library.threads()
    )
    return loss


def _forward_reference(maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    check_image_index(boxes, maps.shape[0])
    if targets.ndim == 5:
        return definition.mimic_loss(maps, coordinates(maps, boxes), targets, weight, *rest)
    return definition.mimic_loss(maps, coordinates(maps, boxes), targets[None], weight[None], *rest)[0]


def _backward_outputs(maps: Tensor, targets: Tensor, need_targets: bool) -> tuple[Tensor, Tensor]:
    """Empty gradients; that of targets has no elements when it is not wanted."""
    return torch.empty_like(maps, memory_format=torch.contiguous_format), (
        torch.empty_like(targets, memory_format=torch.contiguous_format) if need_targets else targets.new_empty((0,))
    )


def _backward_brief(
    upstream: Tensor,
    maps: Tensor,
    boxes: Tensor,
    targets: Tensor,
    weight: Tensor,
    scale: float,
    ratio: int,
    aligned: bool,
    need_targets: bool,
) -> tuple[Tensor, Tensor | None]:
    inputs = _inputs(maps, boxes, targets, weight)
    by_maps = torch.empty_like(maps, memory_format=torch.contiguous_format)
    by_targets = torch.empty_like(targets, memory_format=torch.contiguous_format) if need_targets else None
    upstream = library.dense(upstream, _wide(maps))
    library.core().mimic_loss_backward(*inputs, scale, ratio, aligned, upstream, by_maps, by_targets, library.threads())
    return by_maps, by_targets


def _backward_kernel(
    upstream: Tensor, maps: Tensor, boxes: Tensor, targets: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    by_maps, by_targets = _backward_brief(upstream, maps, boxes, targets, *rest)
    return by_maps, targets.new_empty((0,)) if by_targets is None else by_targets


def _backward_reference(
    upstream: Tensor, maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    *numbers, need_targets = rest
    one = targets.ndim == 4
    sets = (upstream[None], targets[None], weight[None]) if one else (upstream, targets, weight)
    by_maps, by_targets = definition.mimic_loss_backward(sets[0], maps, coordinates(maps, boxes), *sets[1:], *numbers)
    if not need_targets:
        by_targets = by_targets.new_empty((0,))
    elif one:
        by_targets = by_targets[0]
    return by_maps.contiguous(), by_targets.contiguous()


_forward = library.define(
    f"mimic_loss({_ARGUMENTS}) -> Tensor",
    kernel=_forward_kernel,
    reference=_forward_reference,
    fake=lambda maps, boxes, targets, *rest: _losses(maps, targets),
    supports=_supports,
)
_backward = library.define(
    f"mimic_loss_backward(Tensor upstream, {_ARGUMENTS}, bool need_targets) -> (Tensor, Tensor)",
    kernel=_backward_kernel,
    reference=_backward_reference,
    fake=lambda upstream, maps, boxes, targets, *rest: _backward_outputs(maps, targets, rest[-1]),
    supports=lambda upstream, *args: _supports(*args),
    brief=_backward_brief,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, ratio, aligned = inputs
    ctx.save_for_backward(*tensors)
    ctx.numbers = (scale, ratio, aligned)


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    need_maps, _, need_targets = ctx.needs_input_grad[:3]
    by_maps, by_targets = _backward(upstream, *ctx.saved_tensors, *ctx.numbers, need_targets)
    return by_maps if need_maps else None, None, by_targets if need_targets else None, *(None,) * 4


library.differentiable("mimic_loss", _gradient, _setup)
library.no_double_backward("mimic_loss_backward")


def mimic_loss(
    heatmaps: Tensor,
    boxes: Tensor | Sequence[Tensor],
    targets: Tensor,
    weight: Tensor | None,
    spatial_scale: float,
    *,
    sampling_ratio: int = 2,
    aligned: bool = True,
    return_terms: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Squared distance between people cropped from the student's heatmaps and target heatmaps (SIMPLE, eq. 14 and 15).

    `sum over m of 1 / (R K) sum over r, k of weight[m, r, k] ||crop[r, k] - targets[m, r, k]||^2`, where `crop` is
    `roi_align(heatmaps, boxes)` and the norm sums over pixels. The crops are sampled once for all sets and never
    stored. With no boxes the loss is 0.

    Gradients go to heatmaps and to targets (SIMPLE's adapters sit on the target side), not to boxes and weights; both
    are deterministic, and multiplied by the upstream (loss-scaled) gradient before they are rounded to half. Crops
    and targets of weight 0 are not read: NaN there does no harm; R and K count them all the same. Boxes that are not
    finite give a crop of zeros, as for `roi_align`.

    Args:
        heatmaps: the student's, `[N, K, H, W]`, float32, float16, bfloat16 or float64.
        boxes: `[R, 5]` (image index, x1, y1, x2, y2) or a list of N tensors `[R_i, 4]`, input-image pixels.
        targets: `[M, R, K, h, w]`, M sets, or `[R, K, h, w]`, one; any float type. Their size is that of the crops.
        weight: `[M, R, K]`, or `[R, K]` for one set; None: 1.
        spatial_scale: heatmap pixels per box pixel, for example 1/4.
        sampling_ratio: as for `roi_align`.
        aligned: as for `roi_align`.
        return_terms: also return the loss of each set.

    Returns:
        The loss, a float32 scalar (float64 for float64 heatmaps); with `return_terms`, the loss and its terms `[M]`,
        which have gradients too.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape or device; on the CPU, a box on an image that is not
            there.

    Examples:
        >>> import torch
        >>> from posekd.ops import mimic_loss
        >>> heatmaps = torch.zeros(1, 17, 64, 64, requires_grad=True)
        >>> boxes = torch.tensor([[0.0, 16.0, 32.0, 112.0, 160.0]])  # image, x1, y1, x2, y2 in input-image pixels
        >>> targets = torch.ones(1, 17, 16, 12)  # the target heatmaps of each box
        >>> loss = mimic_loss(heatmaps, boxes, targets, None, spatial_scale=1 / 4)
        >>> loss.item()  # 16 x 12 pixels, each 1 away
        192.0
        >>> loss.backward()
        >>> heatmaps.grad.shape
        torch.Size([1, 17, 64, 64])
    """
    checks.check_tensor("heatmaps", heatmaps, "N K H W")
    check_sampling(spatial_scale, sampling_ratio)
    table = as_table(boxes, heatmaps, "heatmaps")
    weight = _checked_weight(heatmaps, table, targets, weight)
    terms = _forward(heatmaps, table, targets, weight, float(spatial_scale), int(sampling_ratio), bool(aligned))
    loss = terms if terms.ndim == 0 else terms.sum()
    return (loss, terms.reshape(-1)) if return_terms else loss


def _checked_weight(heatmaps: Tensor, table: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Checks targets and weight; the weight, of ones if none was given, without a gradient."""
    several = isinstance(targets, Tensor) and targets.ndim == 5
    checks.check_tensor("targets", targets, "M R K h w" if several else "R K h w")
    checks.check_device("targets", targets, heatmaps, "heatmaps")
    *sets, R, K, height, width = targets.shape
    if table.shape[0] != R or heatmaps.shape[1] != K:
        wanted = (*sets, table.shape[0], heatmaps.shape[1], height, width)
        checks.check_shape("targets", targets, wanted, "boxes and heatmaps")
    checks.check_size("the targets' size", (height, width))
    if weight is None:
        return heatmaps.new_ones((*sets, R, K), dtype=_wide(heatmaps))
    checks.check_tensor("weight", weight, "M R K" if several else "R K")
    checks.check_shape("weight", weight, (*sets, R, K), "targets")
    checks.check_device("weight", weight, heatmaps, "heatmaps")
    return checks.constant(weight)
