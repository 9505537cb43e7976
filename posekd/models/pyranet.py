"""PyraNet (Yang et al. 2017): a stacked Hourglass whose residual blocks look at several scales.

A pyramid residual block adds, to the 3x3 convolution of a residual block, a narrow branch that pools its features to
C sizes between 1 and 1/2, convolves each, and adds them up at full size. The published 28 M parameters and 46 GFLOPs
(2 x multiply-accumulates) belong to base width 9 and cardinality 4; the public code defaults to other numbers.

The public code (Torch7) draws its fractional pooling regions at random at each step. Here they are fixed, so that a
network is a function of its input; no checkpoint of it can be read by PyTorch anyway, so the names are free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posekd.models.base import check_counts, check_size
from posekd.models.hourglass import STRIDE, UP, UPPER, StackedHourglass
from posekd.structures import InputSpec

_INPUT = InputSpec(size=(256, 256), bgr=True)


@dataclass(frozen=True)
class PyraNetConfig:
    """Settings of a PyraNet; the defaults are the paper's network.

    Attributes:
        stages: hourglasses in a row.
        width: F, channels of the hourglasses.
        base_width: the pyramid branches of a block with `out` channels have `out // base_width`.
        cardinality: C, levels of a pyramid; level i pools to `2 ** (-i / C)` of the size.
        spec: default input, as of the Hourglass.
    """

    stages: int = 8
    width: int = 256
    base_width: int = 9
    cardinality: int = 4
    spec: InputSpec = _INPUT

    def __post_init__(self) -> None:
        check_counts(self, ("stages", "width", "base_width", "cardinality"))
        if self.width % 2 or self.width < self.base_width:
            raise ValueError(f"width must be even and at least base_width {self.base_width}, got {self.width}")
        check_size(self.spec.size, STRIDE)


PYRANET = PyraNetConfig()
NAMED = {"pyranet": PYRANET, "pyranet_4x128": replace(PYRANET, stages=4, width=128)}
"""By name: the paper's network, and the student of FPD's Table 4."""


def fractional_max_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Fractional max pooling (Graham 2014) with fixed, overlapping 2x2 regions.

    Region i of n along an axis of N pixels starts at `floor(i (N - 2) / (n - 1))`: what `F.fractional_max_pool2d` gives
    for random samples of 0, but for its rounding in float32 (from 28 to 23 pixels, for one). A region is at most as far
    from its place in an even grid as random ones are.

    Args:
        x: `[B, C, H, W]`.
        size: `(height, width)` of the result, each from 2 to one less than the input's.

    Returns:
        `[B, C, *size]`.
    """
    for dim, n in zip((-2, -1), size, strict=True):
        starts = torch.arange(n, device=x.device) * (x.shape[dim] - 2) // (n - 1)
        x = torch.maximum(x.index_select(dim, starts), x.index_select(dim, starts + 1))
    return x


class Pyramid(nn.Module):
    """A convolution at each of C smaller sizes, added up at full size: `[B, D, H, W] -> [B, D, H, W]`."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(levels))

    def forward(self, x: Tensor) -> Tensor:
        """Sum over i of `up(conv_i(pool(x, 2^(-i/C))))`."""
        height, width = x.shape[-2:]
        total = torch.zeros_like(x)
        for i, conv in enumerate(self.convs, start=1):
            ratio = 2 ** (-i / len(self.convs))
            y = conv(fractional_max_pool(x, (int(height * ratio), int(width * ratio))))
            total = total + F.interpolate(y, (height, width), mode="bilinear", align_corners=True)
        return total


def _norm_conv(in_channels: int, out_channels: int, kernel: int = 1, *, norm: bool = True) -> nn.Sequential:
    """Batch norm and ReLU (unless `norm` is False), then a convolution."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv) if norm else nn.Sequential(conv)


class PyramidResidual(nn.Module):
    """A residual block with or without a pyramid branch, `[B, in, H, W] -> [B, out, H, W]`.

    Args:
        in_channels: channels in.
        out_channels: channels out; the inner width is half of it.
        config: settings of the pyramid; None for a plain residual block.
        preact: whether batch norm and ReLU precede the first convolutions (not needed after the stem's own).
        project: a shortcut convolution even where the width stays.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: PyraNetConfig | None,
        *,
        preact: bool = True,
        project: bool = False,
    ) -> None:
        super().__init__()
        inner = out_channels // 2
        self.branch = nn.Sequential(_norm_conv(in_channels, inner, norm=preact), _norm_conv(inner, inner, 3))
        self.pyramid: nn.Module | None = None
        if config is not None:
            D = out_channels // config.base_width
            self.pyramid = nn.Sequential(
                _norm_conv(in_channels, D, norm=preact),
                nn.BatchNorm2d(D),
                nn.ReLU(inplace=True),
                Pyramid(D, config.cardinality),
                _norm_conv(D, inner),
            )
        self.merge = _norm_conv(inner, out_channels)
        same = in_channels == out_channels and not project
        self.shortcut: nn.Module = nn.Identity() if same else _norm_conv(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`shortcut(x) + merge(branch(x) + pyramid(x))`."""
        y = self.branch(x)
        if self.pyramid is not None:
            y = y + self.pyramid(x)
        return self.shortcut(x) + self.merge(y)


class PyraNet(StackedHourglass):
    """Images `[B, 3, H, W]` to the heatmaps `[B, K, H/4, W/4]` of every stage; fresh weights are PyTorch's own."""

    family = "pyranet"

    def __init__(self, config: PyraNetConfig = PYRANET, num_keypoints: int = 16, name: str = "pyranet") -> None:
        width = config.width

        def make(level: int, place: int) -> nn.Module:
            # small maps have no pyramid: the branch that stays has one from the second level on, the others from
            # the third
            pyramid = level >= (1 if place == UPPER else 2)
            return PyramidResidual(width, width, config if pyramid else None, project=place == UP)

        super().__init__(
            config,
            num_keypoints,
            name,
            stem=(
                64,
                PyramidResidual(64, 128, config, preact=False),
                PyramidResidual(128, 128, config),
                PyramidResidual(128, width, config),
            ),
            make=make,
            after=lambda: nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        )
