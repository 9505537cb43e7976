"""The bare ops as modules, for networks that are lists of modules. They have no parameters and no state.

CornerNet's and CenterNet's published blocks, convolutions included, are in `posekd.models.layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from posekd import ops
from posekd.ops import checks
from posekd.ops.corner_pool import DIRECTIONS
from posekd.ops.roi_align import check_sampling

__all__ = ["CenterPool", "CornerPool", "RoIAlign"]


class RoIAlign(nn.Module):
    """`posekd.ops.roi_align` as a module: crops of feature maps, bilinear samples averaged over bins.

    **The default is `aligned=True`; that of `torchvision.ops.RoIAlign` is False.** The pooling is always the average:
    there is no `pool_mode`, the argument by which mmcv's module chooses the maximum.

    Args:
        output_size: `(height, width)` of a crop, or one number for both.
        spatial_scale: map pixels per box pixel.
        sampling_ratio: samples per bin along each axis; 0: as many as the bin has pixels, rounded up.
        aligned: pixel centres at half-integers, so that a box of whole pixels copies them.

    Raises:
        TypeError, ValueError: an argument of a wrong type or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.nn import RoIAlign
        >>> pool = RoIAlign((7, 5), spatial_scale=1 / 4)
        >>> boxes = torch.tensor([[0.0, 8.0, 8.0, 64.0, 96.0]])  # image, x1, y1, x2, y2
        >>> pool(torch.rand(2, 8, 64, 48), boxes).shape
        torch.Size([1, 8, 7, 5])
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        size: Any = (output_size, output_size) if checks.is_whole(output_size) else output_size
        checks.check_size("output_size", size)
        check_sampling(spatial_scale, sampling_ratio)
        self.output_size: tuple[int, int] = tuple(size)
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """Crops `boxes` out of `input`.

        Args:
            input: `[N, C, H, W]`, float32, float16, bfloat16 or float64.
            boxes: `[R, 5]` (image index, x1, y1, x2, y2), or a list of N tensors `[R_i, 4]`, in input-image pixels.

        Returns:
            `[R, C, height, width]` in input's dtype.
        """
        return ops.roi_align(
            input, boxes, self.output_size, self.spatial_scale, self.sampling_ratio, aligned=self.aligned
        )

    def extra_repr(self) -> str:
        """The settings, as `print` shows them."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class CornerPool(nn.Module):
    """`posekd.ops.corner_pool` as a module: the largest value from each pixel to the border, itself included.

    CornerNet's whole corner pooling block is `posekd.models.layers.CornerPool`.

    Args:
        direction: `"top"` (over the pixel and all below it), `"bottom"`, `"left"` or `"right"`.

    Raises:
        ValueError: another direction.

    Examples:
        >>> import torch
        >>> from posekd.nn import CornerPool
        >>> x = torch.tensor([1.0, 3.0, 0.0, 2.0]).reshape(1, 1, 1, 4)
        >>> CornerPool("left")(x).flatten().tolist()
        [3.0, 3.0, 2.0, 2.0]
    """

    def __init__(self, direction: str) -> None:
        super().__init__()
        checks.check_choice("direction", direction, DIRECTIONS)
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`, in the dtype of `x`."""
        return ops.corner_pool(x, self.direction)

    def extra_repr(self) -> str:
        """The setting, as `print` shows it."""
        return repr(self.direction)


class CenterPool(nn.Module):
    """`posekd.ops.center_pool` of one map as a module: each pixel's column maximum plus its row maximum.

    CenterNet's whole center pooling block is `posekd.models.layers.CenterPool`.

    Examples:
        >>> import torch
        >>> from posekd.nn import CenterPool
        >>> CenterPool()(torch.tensor([[1.0, 5.0], [2.0, 3.0]])[None, None])
        tensor([[[[ 7., 10.],
                  [ 5.,  8.]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W] -> [N, C, H, W]`, in the dtype of `x`."""
        return ops.center_pool(x)
