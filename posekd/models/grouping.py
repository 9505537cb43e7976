"""The grouping network of SIMPLE: of the heatmaps inside a person's box, which are that person's.

The paper draws an encoder and decoder and gives no widths; these are a choice (326,682 parameters at 17 keypoints,
0.116 GMAC for a box).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from posekd.models.layers import GlobalContext, conv1x1, conv3x3, conv_bn

GROUPING_WIDTHS = (32, 48, 64, 96)
CONTEXT_RATIO = 4
START_BIAS = -2.19  # a probability of 0.1, as for the other points


def _conv3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return conv_bn(conv3x3(in_channels, out_channels, stride), out_channels, relu=True)


class PersonGrouping(nn.Module):
    """Heatmaps inside boxes `[R, K, h, w]` to masks of the same shape, 0..1.

    Each level halves the resolution by a strided convolution; the deepest has a global context block; on the way back
    the levels' maps are added.

    Args:
        num_keypoints: K.
        widths: channels of the levels, finest first; h and w are multiples of 2^(levels - 1).
    """

    def __init__(self, num_keypoints: int, widths: Sequence[int] = GROUPING_WIDTHS) -> None:
        super().__init__()
        levels = [_conv3(num_keypoints, widths[0])]
        for i, (before, width) in enumerate(pairwise(widths), 1):
            deepest = i == len(widths) - 1
            context = [GlobalContext(width, CONTEXT_RATIO)] if deepest else []
            levels.append(nn.Sequential(_conv3(before, width, 2), *context, _conv3(width, width)))
        self.encoder = nn.ModuleList(levels)
        back = list(reversed(widths))
        self.narrow = nn.ModuleList(
            conv_bn(conv1x1(before, width), width, relu=True) for before, width in pairwise(back)
        )
        self.decoder = nn.ModuleList(_conv3(width, width) for width in back[1:])
        self.out = nn.Conv2d(widths[0], num_keypoints, 1)

    def start(self) -> None:
        """Sets the last bias: most of what a mask says is that a pixel is not the person's."""
        nn.init.constant_(self.out.bias, START_BIAS)  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> Tensor:
        """See the class."""
        maps, x = [], crops
        for level in self.encoder:
            x = level(x)
            maps.append(x)
        maps.pop()
        for narrow, decode in zip(self.narrow, self.decoder, strict=True):
            x = decode(F.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + maps.pop())
        return self.out(x).sigmoid()
