"""Everything from an image to keypoints as one module of plain PyTorch, for exporters: no op of ours is in it.

The kernels' definitions (`posekd.ops.reference`) stand in for the kernels, so what is exported is what they are tested
against. Crops are cut by gathering pixels: sampling at a matrix without rotation, in float32, as `crop_warp` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posekd import geometry
from posekd.paradigms.top_down import CODECS, TopDownInference
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec


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
    (left, right), (top, bottom) = neighbours(x, image.shape[1]), neighbours(y, image.shape[0])
    flat = image.flatten(0, 1)
    crops = torch.zeros((), device=image.device)
    for rows, rows_weight in (top, bottom):
        for columns, columns_weight in (left, right):
            index = rows[:, :, None] * image.shape[1] + columns[:, None, :]
            weight = rows_weight[:, :, None] * columns_weight[:, None, :]
            crops = crops + flat[index].float() * weight[..., None]
    return crops.permute(0, 3, 1, 2)


def neighbours(at: Tensor, length: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Both neighbours of positions `[N, n]` along an axis: index, clamped into the image, and weight, 0 outside it."""
    near = (at > -1) & (at < length)  # false for NaN
    at = torch.where(near, at, 0.0)
    low = at.floor()
    share = at - low

    def neighbour(index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        inside = near & (index >= 0) & (index <= length - 1)
        return index.long().clamp(0, length - 1), torch.where(inside, weight, 0.0)

    return neighbour(low, 1 - share), neighbour(low + 1, share)
