"""HigherHRNet (Cheng et al. 2020) and the SmallerHRNet students: bottom-up pose with associative embedding.

HRNet's highest branch gives heatmaps and tags at 1/4 of the input; a transposed convolution on [feature, that output]
gives heatmaps alone at 1/2. State-dict keys are those of the official repository
(HRNet/HigherHRNet-Human-Pose-Estimation), so its checkpoints load strictly.

SmallerHRNet changes nothing but numbers. The paper leaves some of them open; they are those of its authors' public
configurations, which meet the published parameters and GFLOPs (the paper's "2.96M" is 2,918,291).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posekd.models.base import PoseModel, check_counts
from posekd.models.hrnet import HRNetConfig, HRNetTrunk
from posekd.models.layers import BasicBlock, init_weights
from posekd.structures import InputSpec

_INPUT = InputSpec(size=(512, 512))


@dataclass(frozen=True)
class HigherHRNetConfig(HRNetConfig):
    """Settings of a HigherHRNet; the defaults are HigherHRNet-W32 at 512.

    Attributes:
        deconv_width: channels behind the transposed convolution; None means the width of the highest branch.
        deconv_blocks: residual blocks behind it.
    """

    spec: InputSpec = _INPUT
    deconv_width: int | None = None
    deconv_blocks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, ("deconv_blocks",) if self.deconv_width is None else ("deconv_blocks", "deconv_width"))
        if self.final_gc or self.final_multiscale:
            raise ValueError("HigherHRNet's heads read the highest resolution alone: no final_gc, no final_multiscale")


HIGHERHRNET_W32 = HigherHRNetConfig()
HIGHERHRNET_W48 = HigherHRNetConfig(width=48, spec=InputSpec(size=(640, 640)))

_STUDENT = replace(HIGHERHRNET_W32, width=16, blocks=2, modules=(1, 2, 2))
SMALLERHRNET_1_5M = replace(_STUDENT, widths=(16, 32, 48, 64), deconv_width=8, deconv_blocks=2)
SMALLERHRNET_2_3M = replace(_STUDENT, widths=(16, 32, 48, 64), modules=(1, 4, 3), deconv_width=32)
SMALLERHRNET_2_84M = replace(_STUDENT, widths=(16, 32, 64, 128), deconv_width=16, deconv_blocks=2)
SMALLERHRNET_2_96M = replace(_STUDENT, widths=(16, 32, 64, 128), deconv_width=32)


class HigherHRNet(HRNetTrunk, PoseModel):
    """The bottom-up pose network: images `[B, 3, H, W]` to maps at two resolutions (see `forward`)."""

    family = "higherhrnet"
    paradigm = "bottom_up"
    output = "tagged_heatmaps"
    head_prefixes = ("final_layers.", "deconv_layers.")

    def __init__(
        self, config: HigherHRNetConfig = HIGHERHRNET_W32, num_keypoints: int = 17, name: str = "higherhrnet"
    ) -> None:
        super().__init__(config)
        self.num_keypoints = num_keypoints
        self.name = name
        width = config.branch_widths[0]
        deconv_width = config.deconv_width or width
        self.final_layers = nn.ModuleList(
            (nn.Conv2d(width, 2 * num_keypoints, 1), nn.Conv2d(deconv_width, num_keypoints, 1))
        )
        self.deconv_layers = nn.ModuleList(
            (_upsampling(width + 2 * num_keypoints, deconv_width, config.deconv_blocks),)
        )
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of normalised images `[B, 3, H, W]` (see `spec`).

        Returns:
            `[B, 2 K, H/4, W/4]`, K heatmaps and then K tag maps; and `[B, K, H/2, W/2]`, heatmaps.
        """
        features = self.features(x)[0]
        coarse = self.final_layers[0](features)
        fine = self.deconv_layers[0](torch.cat((features, coarse), dim=1))
        return [coarse, self.final_layers[1](fine)]


def _upsampling(in_channels: int, width: int, blocks: int) -> nn.Sequential:
    """Transposed convolution 4x4 stride 2, batch norm, ReLU; then residual blocks, nested as the official keys are."""
    deconvolution = nn.ConvTranspose2d(in_channels, width, 4, stride=2, padding=1, bias=False)
    first = nn.Sequential(deconvolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    return nn.Sequential(first, *(nn.Sequential(BasicBlock(width)) for _ in range(blocks)))
