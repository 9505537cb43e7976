"""`roi_align` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Where ROIAlign samples along one axis of every box.

    Attributes:
        start: `[R]`, position of the box's low edge in pixels.
        bin: `[R]`, size of an output bin; negative where the box is inverted.
        grid: `[R]`, samples per bin; 0 where there are none.
        outputs: number of bins.
        length: number of pixels.
        most: samples per bin, where all boxes have as many (an exporter cannot ask `grid`).
    """

    start: Tensor
    bin: Tensor
    grid: Tensor
    outputs: int
    length: int
    most: int | None = None

    def samples(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For i = 0, 1, ..., sample i of every bin: valid, low pixel, high pixel, its weight; `[R, outputs]`."""
        p = torch.arange(self.outputs, device=self.start.device, dtype=self.start.dtype)
        corner = self.start[:, None] + p * self.bin[:, None]
        most = self.most
        if most is None:
            most = int(self.grid.max()) if self.grid.numel() else 0
        for i in range(most):
            at = corner + ((i + 0.5) * self.bin / self.grid)[:, None]
            valid = (at >= -1) & (at <= self.length) & (i < self.grid)[:, None]
            at = torch.where(valid, at, 0).clamp(0, self.length - 1)
            low = at.long()
            yield valid, low, (low + 1).clamp(max=self.length - 1), at - low


def axes(
    boxes: Tensor, size: tuple[int, int], out: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> tuple[Axis, Axis, Tensor]:
    """The vertical and horizontal axis of boxes `[R, 4]` (x1, y1, x2, y2), and how many samples a value averages."""
    offset = 0.5 if aligned else 0.0
    corners = boxes * scale - offset
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        extent = torch.where(extent < 1, 1, extent)  # NaN stays
    bins = extent / extent.new_tensor([out[1], out[0]])
    grid = torch.full_like(bins, ratio) if ratio > 0 else bins.ceil().clamp(0, 2**20)
    finite = (start.isfinite() & extent.isfinite()).all(1, keepdim=True)
    grid = torch.where(finite, grid, 0)
    start, bins = torch.where(finite, start, 0), torch.where(finite, bins, 0)
    most = ratio if ratio > 0 else None
    x, y = (Axis(start[:, i], bins[:, i], grid[:, i], out[1 - i], size[1 - i], most) for i in (0, 1))
    return y, x, (y.grid * x.grid).clamp(min=1)


def _spread(weight: Tensor, dim: int) -> Tensor:
    """Weights `[R, outputs]` of dimension `dim` (2 or 3), shaped to multiply `[R, C, ., .]`."""
    return weight[:, None, :, None] if dim == 2 else weight[:, None, None, :]


def _gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Sum over the samples of every bin, along `dim`: `[R, C, ..., length, ...]` to `[R, C, ..., outputs, ...]`."""
    shape = list(x.shape)
    shape[dim] = axis.outputs
    out = x.new_zeros(shape)
    for valid, low, high, weight in axis.samples():
        for pixel, w in ((low, 1 - weight), (high, weight)):
            value = x.gather(dim, _spread(pixel, dim).expand(shape)) * _spread(w, dim)
            out = out + torch.where(_spread(valid, dim), value, 0)
    return out


def _scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The transpose of `_gather`."""
    shape = list(x.shape)
    shape[dim] = axis.length
    out = x.new_zeros(shape)
    for valid, low, high, weight in axis.samples():
        for pixel, w in ((low, 1 - weight), (high, weight)):
            value = torch.where(_spread(valid, dim), x * _spread(w, dim), 0)
            out = out.scatter_add(dim, _spread(pixel, dim).expand_as(x), value)
    return out


def image_index(boxes: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The image of every box `[R]` (truncated), and whether there is one; without one the index is 0."""
    known = (boxes[:, 0] > -1) & (boxes[:, 0] < images)
    return torch.where(known, boxes[:, 0], 0).long(), known


def roi_align(maps: Tensor, boxes: Tensor, out: tuple[int, int], scale: float, ratio: int, aligned: bool) -> Tensor:
    """The crops `[R, C, *out]` of `maps` `[N, C, H, W]`; boxes `[R, 5]`; see `posekd.ops.roi_align`."""
    wide = torch.promote_types(maps.dtype, torch.float32)
    N, C, H, W = maps.shape
    if maps.numel() == 0 or boxes.shape[0] == 0:
        return maps.new_zeros((boxes.shape[0], C, *out)) + maps.sum() * 0
    index, known = image_index(boxes, N)
    y, x, count = axes(boxes[:, 1:].to(wide), (H, W), out, scale, ratio, aligned)
    crops = _gather(_gather(maps[index].to(wide), y, 2), x, 3) / count[:, None, None, None]
    return torch.where(known[:, None, None, None], crops, 0).to(maps.dtype)


def roi_align_backward(
    gradient: Tensor, boxes: Tensor, size: tuple[int, int, int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """The derivative of `roi_align` by the maps, of `size` (N, C, H, W); `gradient` is `[R, C, P, Q]`."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    maps = gradient.new_zeros(size, dtype=wide)
    if maps.numel() > 0 and gradient.numel() > 0:
        index, known = image_index(boxes, size[0])
        shape = (gradient.shape[2], gradient.shape[3])
        y, x, count = axes(boxes[:, 1:].to(wide), (size[2], size[3]), shape, scale, ratio, aligned)
        planes = _scatter(_scatter(gradient.to(wide) / count[:, None, None, None], x, 3), y, 2)
        maps.index_add_(0, index, torch.where(known[:, None, None, None], planes, 0))
    return maps.to(gradient.dtype)
