"""A feature pyramid and RetinaNet's head on it (Lin et al. 2017): of each anchor whether and where a person is.

MultiPoseNet (Kocabas et al. 2018) detects people so, and SIMPLE's Table 2 compares with it. Widths are this project's
choice; RetinaNet's is 256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOWER = 4  # convolutions before the last one
START = -math.log((1 - 0.01) / 0.01)  # RetinaNet: an anchor starts at a probability of 0.01


class AnchorHead(nn.Module):
    """Features at 1/8 and coarser to `[B, N, 5]`: logit, shift and growth for each anchor of each level.

    Args:
        in_channels: of the features, finest first; those that are not there are made from the coarsest by strided
            convolutions.
        levels: how many levels there are.
        anchors: of a pixel of a level.
        dim: channels of the pyramid and of the head.
    """

    def __init__(self, in_channels: Sequence[int], levels: int, anchors: int, dim: int) -> None:
        super().__init__()
        used = list(in_channels)[:levels]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in used)
        self.smooth = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in used)
        self.coarser = nn.ModuleList(
            nn.Conv2d(dim if i else used[-1], dim, 3, stride=2, padding=1) for i in range(levels - len(used))
        )
        self.class_tower, self.box_tower = _tower(dim), _tower(dim)
        self.logit = nn.Conv2d(dim, anchors, 3, padding=1)
        self.box = nn.Conv2d(dim, 4 * anchors, 3, padding=1)

    def start(self) -> None:
        """Sets the first weights: there is no norm here that would make their scale immaterial."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for last in (self.logit, self.box):
            nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(cast(Tensor, self.logit.bias), START)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """See the class."""
        given = list(features)[: len(self.lateral)]
        levels = [lateral(x) for lateral, x in zip(self.lateral, given, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            size = (levels[i].shape[2], levels[i].shape[3])
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=size, mode="nearest")
        pyramid = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        x = given[-1]
        for i, convolution in enumerate(self.coarser):
            x = convolution(F.relu(x) if i else x)
            pyramid.append(x)
        return torch.cat([self._say(x) for x in pyramid], 1)

    def _say(self, x: Tensor) -> Tensor:
        """`[B, anchors of the level, 5]`, row by row, the anchors of a pixel one after another."""
        logits = self.logit(self.class_tower(x))
        boxes = self.box(self.box_tower(x)).unflatten(1, (logits.shape[1], 4))
        both = torch.cat((logits[:, :, None], boxes), 2)  # [B, anchors, 5, h, w]
        return both.permute(0, 3, 4, 1, 2).flatten(1, 3)


def _tower(dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(TOWER):
        layers += [nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
