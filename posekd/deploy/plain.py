"""What stands in for our ops in exported graphs: their definitions, in operations that every runtime has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posekd.ops.corner_pool import DIRECTIONS
from posekd.ops.decode_heatmaps import METHODS
from posekd.ops.reference import decode_boxes, decode_heatmaps, roi_align
from posekd.ops.reference import group_keypoints as definition

LARGEST_MAP = 1024  # pixels of a side of a feature map that corner pooling may meet in an exported graph


# ---- Corner and center pooling -----------------------------------------------------------------------------------


def running_max(x: Tensor, dim: int, backwards: bool) -> Tensor:
    """The largest value from each pixel to one border, itself included, by doubling steps.

    Args:
        x: `[N, C, H, W]`, sides up to `LARGEST_MAP`.
        dim: 2 or 3.
        backwards: towards the first pixel instead of the last.
    """
    step = 1
    while step < LARGEST_MAP:
        before, after = (step, 0) if backwards else (0, step)
        ends = (before, after, 0, 0) if dim == 3 else (0, 0, before, after)
        kept = slice(None, -step) if backwards else slice(step, None)
        padded = F.pad(x, ends, value=float("-inf"))
        x = torch.maximum(x, padded[..., kept] if dim == 3 else padded[..., kept, :])
        step *= 2
    return x


_SCANS = {"top": (2, False), "bottom": (2, True), "left": (3, False), "right": (3, True)}


def _corner_pool(x: Tensor, other: Tensor | None, direction: int, last_wins: bool, keep_heads: bool) -> Any:
    pooled = running_max(x, *_SCANS[DIRECTIONS[direction]])
    return pooled if other is None else pooled + other, _nothing(x)


def _corner_pool_sum(
    vertical: Tensor, horizontal: Tensor, down: int, across: int, last_wins: bool, keep_heads: bool
) -> Any:
    pooled = running_max(vertical, *_SCANS[DIRECTIONS[down]]) + running_max(horizontal, *_SCANS[DIRECTIONS[across]])
    return pooled, _nothing(vertical), _nothing(vertical)


def _center_pool(vertical: Tensor, horizontal: Tensor | None, keep_arguments: bool) -> Any:
    columns = vertical.amax(2, keepdim=True)
    rows = (vertical if horizontal is None else horizontal).amax(3, keepdim=True)
    return columns + rows, _nothing(vertical), _nothing(vertical)


def _nothing(x: Tensor) -> Tensor:
    """What is kept for a derivative, when there is none."""
    return x.new_empty((0,), dtype=torch.int32)


# ---- Peaks, boxes, crops -----------------------------------------------------------------------------------------


def top_k_peaks(heatmaps: Tensor, tags: Tensor, max_people: int, threshold: float, nms_kernel: int) -> Tensor:
    """See `posekd.ops.top_k_peaks`, without sorting whole maps. NaN is no peak."""
    return _peaks(heatmaps, tags, max_people, threshold, nms_kernel, _first_largest)


def _top_k_peaks_of_onnx(heatmaps: Tensor, tags: Tensor, max_people: int, threshold: float, nms_kernel: int) -> Tensor:
    """The same where `topk` gives equal values by their place, as ONNX promises and PyTorch does not."""
    return _peaks(heatmaps, tags, max_people, threshold, nms_kernel, lambda flat, count: flat.topk(count, -1))


def _first_largest(flat: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk` of values that are not negative; of equal ones the first. Their bits and their place are one number."""
    place = torch.arange(flat.shape[-1], device=flat.device)
    key = (flat.contiguous().view(torch.int32).long() << 32) - place
    index = key.topk(count, -1).indices
    return flat.gather(-1, index), index


def _peaks(
    heatmaps: Tensor,
    tags: Tensor,
    max_people: int,
    threshold: float,
    nms_kernel: int,
    largest: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> Tensor:
    maps, planes = heatmaps.float(), definition.tag_planes(tags, heatmaps)
    width = maps.shape[3]
    highest = F.max_pool2d(maps, nms_kernel, 1, nms_kernel // 2)
    is_peak = (maps == highest) & (maps > threshold) & maps.isfinite()
    # a map may have fewer pixels than peaks are listed
    flat = F.pad(torch.where(is_peak, maps, 0.0).flatten(2), (0, max_people))
    score, pixel = largest(flat, max_people)
    found = score > 0
    pixel = torch.where(found, pixel, 0)
    tag = planes.gather(2, pixel[..., None].expand(-1, -1, -1, planes.shape[-1]))
    y = pixel // width
    rows = torch.cat([torch.stack([(pixel - y * width).float(), y.float(), score], -1), tag], -1)
    return torch.where(found[..., None], rows, 0.0)


def _roi_align(maps: Tensor, boxes: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    return roi_align.roi_align(maps, boxes, (height, width), scale, ratio, aligned)


def _decode_heatmaps(heatmaps: Tensor, matrices: Tensor | None, method: int, blur: int) -> Tensor:
    return decode_heatmaps.decode_heatmaps(heatmaps, METHODS[method], matrices, blur)


STAND_INS: dict[str, Callable[..., Any]] = {
    "corner_pool": _corner_pool,
    "corner_pool_sum": _corner_pool_sum,
    "center_pool": _center_pool,
    "top_k_peaks": top_k_peaks,
    "pair_corners": decode_boxes.pair_corners,
    "roi_align": _roi_align,
    "decode_heatmaps": _decode_heatmaps,
}
"""Of each op of ours that a network or its decoding may call: what an exporter puts in its place."""

ONNX_STAND_INS = {**STAND_INS, "top_k_peaks": _top_k_peaks_of_onnx}
"""The same for ONNX, which has an operation for the one that is missing here."""
del ONNX_STAND_INS["roi_align"]
