"""`mimic_loss` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from posekd.ops.reference.roi_align import roi_align, roi_align_backward


def _difference(
    maps: Tensor,
    boxes: Tensor,
    targets: Tensor,
    weight: Tensor,
    scale: float,
    ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Crop minus target, `[M, R, K, h, w]`, 0 where the weight is; and the weight, shaped to multiply it."""
    wide = torch.promote_types(maps.dtype, torch.float32)
    crops = roi_align(maps.to(wide), boxes, (targets.shape[3], targets.shape[4]), scale, ratio, aligned)
    w = weight.to(wide)[..., None, None]
    return torch.where(w != 0, crops - targets.to(wide), 0), w


def mimic_loss(
    maps: Tensor, boxes: Tensor, targets: Tensor, weight: Tensor, scale: float, ratio: int, aligned: bool
) -> Tensor:
    """The losses `[M]` of the target sets `[M, R, K, h, w]`; boxes `[R, 5]`; see `posekd.ops.mimic_loss`."""
    difference, w = _difference(maps, boxes, targets, weight, scale, ratio, aligned)
    crops = max(targets.shape[1] * targets.shape[2], 1)
    return (w * difference.square()).sum((1, 2, 3, 4)) / crops


def mimic_loss_backward(
    upstream: Tensor,
    maps: Tensor,
    boxes: Tensor,
    targets: Tensor,
    weight: Tensor,
    scale: float,
    ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """The derivatives of `mimic_loss` by maps and targets, written out; `upstream` is `[M]`."""
    difference, w = _difference(maps, boxes, targets, weight, scale, ratio, aligned)
    crops = max(targets.shape[1] * targets.shape[2], 1)
    gradient = difference * w * (2 * upstream.to(difference.dtype) / crops)[:, None, None, None, None]
    N, K, H, W = maps.shape
    by_maps = roi_align_backward(gradient.sum(0), boxes, (N, K, H, W), scale, ratio, aligned)
    return by_maps.to(maps.dtype), (-gradient).to(targets.dtype)
