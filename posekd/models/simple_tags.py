"""SIMPLE without a detection branch: a tag beside each heatmap says whose a keypoint is (associative embedding).

A comparison of the SIMPLE paper's Table 2. It is a bottom-up network, at 1/4 alone: `codecs.tagged_heatmaps`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posekd.models.base import PoseModel
from posekd.models.hrnet import HRNetConfig, HRNetTrunk
from posekd.models.layers import init_weights
from posekd.models.simple import SIMPLE_INPUT, at_quarter, pose_head
from posekd.structures import InputSpec


@dataclass(frozen=True)
class SimpleTagsConfig(HRNetConfig):
    """Settings; the defaults are those of SIMPLE-W32's trunk."""

    spec: InputSpec = SIMPLE_INPUT
    final_multiscale: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final_gc or not self.final_multiscale:
            raise ValueError("SIMPLE's heads read all scales: no final_gc, and final_multiscale must be true")


W32 = SimpleTagsConfig()
NAMED = {"simple_w18_tags": replace(W32, width=18), "simple_w32_tags": W32}


class SimpleTags(HRNetTrunk, PoseModel):
    """The network: images `[B, 3, H, W]` to heatmaps and tags (see `forward`)."""

    family = "simple_tags"
    paradigm = "bottom_up"
    output = "tagged_heatmaps"
    head_prefixes = ("pose_head.", "tags.")
    config: SimpleTagsConfig

    def __init__(self, config: SimpleTagsConfig = W32, num_keypoints: int = 17, name: str = "simple_tags") -> None:
        super().__init__(config)
        self.num_keypoints = num_keypoints
        self.name = name
        shared = sum(config.branch_widths)
        self.pose_head = pose_head(shared, num_keypoints)
        self.tags = nn.Conv2d(shared, num_keypoints, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of normalised images `[B, 3, H, W]` (see `spec`): `[B, 2 K, H/4, W/4]`, K heatmaps and then K tag maps."""
        shared = at_quarter(self.features(x))
        return [torch.cat((self.pose_head(shared), self.tags(shared)), 1)]
