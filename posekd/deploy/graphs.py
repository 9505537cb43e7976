"""Everything from an image to keypoints as one module of plain PyTorch, for exporters: no op of ours is in it.

The kernels' definitions (`posekd.ops.reference`) stand in for the kernels, so what is exported is what they are tested
against. Crops are cut by gathering pixels: sampling at a matrix without rotation, in float32, as `crop_warp` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posekd import geometry
from posekd.models import corner_pooling
from posekd.paradigms.top_down import CODECS, TopDownInference
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec

LARGEST_MAP = 2048  # pixels of a side of a feature map that corner pooling may meet in an exported graph


class TopDownGraph(nn.Module):
    """A top-down network with its preprocessing and decoding.

    Args:
        model: the network, in eval mode.
        skeleton: its K keypoints.
        settings: flip test and decoding.
        padding: factor by which crops are larger than boxes.
        half: whether the network computes in float16; the rest is float32 always.
    """

    flip: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, skeleton: Skeleton, settings: TopDownInference, padding: float, half: bool = False
    ) -> None:
        super().__init__()
        self.model, self.settings, self.padding, self.half_network = model, settings, padding, half
        self.codec = CODECS[str(getattr(model, "output", "heatmaps"))]
        spec = model.spec
        assert isinstance(spec, InputSpec)
        self.spec = spec
        self.register_buffer("flip", torch.tensor(skeleton.flip), persistent=False)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Keypoints of the people in boxes.

        Args:
            image: uint8 RGB `[H, W, 3]`.
            boxes: float32 `[N, 4]` (x, y, width, height) in image pixels.

        Returns:
            float32 `[N, K, 3]` (x, y, score) in image pixels.
        """
        size, settings = self.spec.size, self.settings
        matrices = geometry.crop_matrices(*geometry.box_to_center_scale(boxes, size, self.padding), None, None, size)
        crops = cut(image, matrices, size)
        crops = ((crops.flip(1) if self.spec.bgr else crops) / 255 - self.mean) / self.std
        if settings.flip_test:
            both = self._said(torch.cat((crops, crops.flip(-1))))
            one, mirrored = both[: boxes.shape[0]], both[boxes.shape[0] :]
            said = self.codec.average(one, self.codec.unmirror(mirrored, self.flip, size, settings))
        else:
            said = self._said(crops)
        keypoints: Tensor = self.codec.decode_plain(said, matrices, size, settings)
        return keypoints

    def _said(self, crops: Tensor) -> Tensor:
        output = self.model(crops.half() if self.half_network else crops)
        said: Tensor = self.codec.final(output, len(self.flip))
        return said


def cut(image: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops of an image: bilinear samples at matrices without rotation, zero outside.

    Args:
        image: uint8 `[H, W, 3]`.
        matrices: float32 `[N, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.

    Returns:
        float32 `[N, 3, *size]` in 0..255.
    """
    x = matrices[:, 0, 0, None] * torch.arange(size[1], device=image.device) + matrices[:, 0, 2, None]
    y = matrices[:, 1, 1, None] * torch.arange(size[0], device=image.device) + matrices[:, 1, 2, None]
    (left, right), (top, bottom) = _neighbours(x, image.shape[1]), _neighbours(y, image.shape[0])
    flat = image.flatten(0, 1)
    crops = torch.zeros((), device=image.device)
    for rows, rows_weight in (top, bottom):
        for columns, columns_weight in (left, right):
            index = rows[:, :, None] * image.shape[1] + columns[:, None, :]
            weight = rows_weight[:, :, None] * columns_weight[:, None, :]
            crops = crops + flat[index].float() * weight[..., None]
    return crops.permute(0, 3, 1, 2)


def _neighbours(at: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both neighbours of positions `[N, n]` along an axis: index, clamped into the image, and weight, 0 outside it."""
    near = (at > -1) & (at < length)  # false for NaN
    at = torch.where(near, at, 0.0)
    low = at.floor()
    share = at - low

    def neighbour(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        inside = near & (index >= 0) & (index <= length - 1)
        return index.long().clamp(0, length - 1), torch.where(inside, weight, 0.0)

    return neighbour(low, 1 - share), neighbour(low + 1, share)


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
        padded = F.pad(x, ends, value=float("-inf"))
        x = torch.maximum(x, padded.narrow(dim, 0 if backwards else step, x.shape[dim]))
        step *= 2
    return x


_DIRECTIONS = {"top": (2, False), "bottom": (2, True), "left": (3, False), "right": (3, True)}


def _corner_pool(x: Tensor, direction: str) -> Tensor:
    return running_max(x, *_DIRECTIONS[direction])


def _center_pool(x: Tensor) -> Tensor:
    return x.amax(2, keepdim=True) + x.amax(3, keepdim=True)


@contextmanager
def plain_pooling() -> Iterator[None]:
    """Within the block, networks pool corners and centers by plain PyTorch."""
    names = ("corner_pool_add", "corner_pool_sum", "center_pool")
    before = {name: getattr(corner_pooling, name) for name in names}
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(corner_pooling, name, function)


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in a network's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in tensors_of(part)]
