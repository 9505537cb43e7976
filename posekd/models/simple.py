"""SIMPLE: one network that detects people and finds their keypoints, both as points of one image.

HRNet's four scales, enlarged to 1/4 and concatenated, feed a pose head and a detection branch with CenterNet's cascade
corner and center pooling: heatmaps of the K keypoints, and of top-left corners, bottom-right corners and centres, with
offsets of each inside its pixel. A second, small network (`PersonGrouping`) is asked with the heatmaps inside a box,
and says which of them are that person's.

The paper leaves the heads' widths open. 128/64 keep CenterNet's proportion and fit the published times; `head_dim: 256`
and `head_mid: 128` are CenterNet's own, and `detection: literal` is the paper's Equation 9 as printed: pooling of the
shared features themselves and one convolution for each map, without offsets.

Table 2 compares with `detection: anchors`, RetinaNet's head on a feature pyramid in place of points, and with tags
(`models.simple_tags`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posekd.codecs import anchored_people
from posekd.models.anchor_head import AnchorHead
from posekd.models.base import PoseModel, check_counts
from posekd.models.corner_pooling import BOTTOM_RIGHT, TOP_LEFT, CascadeCornerPool, CenterPool
from posekd.models.grouping import GROUPING_WIDTHS, PersonGrouping
from posekd.models.hrnet import HRNetConfig, HRNetTrunk
from posekd.models.layers import conv1x1, conv_bn, init_weights
from posekd.ops import center_pool, corner_pool_sum
from posekd.structures import InputSpec

Detection = Literal["modules", "literal", "anchors"]

HEAT_BIAS = -2.19  # CenterNet: a map starts at a probability of 0.1
SIMPLE_INPUT = InputSpec(size=(512, 512))


@dataclass(frozen=True)
class SimpleConfig(HRNetConfig):
    """Settings of a SIMPLE network; the defaults are SIMPLE-W32's.

    Attributes:
        detection: `modules`, CenterNet's corner and center pooling modules; `literal`, the paper's Equation 9;
            or `anchors`, RetinaNet's head.
        head_dim: channels of the detection branch; read by `modules` and `anchors`.
        head_mid: channels inside the pooling modules of `modules`.
        embeddings: a tag for each corner, too, by which CenterNet pairs them; a loss only, as decoding asks the
            centres. For `modules`.
        grouping_widths: channels of the grouping network's levels; null for none: a person's keypoints are then the
            highest peaks inside the box.
    """

    spec: InputSpec = SIMPLE_INPUT
    final_multiscale: bool = True
    detection: Detection = "modules"
    head_dim: int = 128
    head_mid: int = 64
    embeddings: bool = False
    grouping_widths: tuple[int, ...] | None = GROUPING_WIDTHS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, ("head_dim", "head_mid"))
        if self.grouping_widths is not None:
            check_counts(self, ("grouping_widths",))
            if len(self.grouping_widths) < 2:
                raise ValueError(f"grouping_widths must be of two levels or more, or null; got {self.grouping_widths}")
        if self.detection not in get_args(Detection):
            raise ValueError(f"detection must be one of {get_args(Detection)}, got {self.detection!r}")
        if self.embeddings and self.detection != "modules":
            raise ValueError(f"embeddings are of detection modules, not of {self.detection!r}")
        if self.final_gc or not self.final_multiscale:
            raise ValueError("SIMPLE's heads read all scales: no final_gc, and final_multiscale must be true")


SIMPLE_W32 = SimpleConfig()
SIMPLE_W18 = replace(SIMPLE_W32, width=18)
NAMED = {"simple_w18": SIMPLE_W18, "simple_w32": SIMPLE_W32}


class DetectionModules(nn.Module):
    """CenterNet's branch on reduced features: `[B, C, h, w]` to logits `[B, 3, h, w]` and offsets `[B, 6, h, w]`, and
    perhaps tags `[B, 2, h, w]` of corners.

    Args:
        in_channels: C.
        dim: channels of the branch.
        mid: channels inside the pooling modules.
        embeddings: whether there are tags.
    """

    def __init__(self, in_channels: int, dim: int, mid: int, embeddings: bool = False) -> None:
        super().__init__()
        self.reduce = conv_bn(conv1x1(in_channels, dim), dim, relu=True)
        self.tl_pool = CascadeCornerPool(dim, TOP_LEFT, mid)
        self.br_pool = CascadeCornerPool(dim, BOTTOM_RIGHT, mid)
        self.ct_pool = CenterPool(dim, mid)
        self.heat = nn.ModuleList(nn.Conv2d(dim, 1, 3, padding=1) for _ in range(3))
        self.offset = nn.ModuleList(nn.Conv2d(dim, 2, 3, padding=1) for _ in range(3))
        self.tag = nn.ModuleList(nn.Conv2d(dim, 1, 3, padding=1) for _ in range(2)) if embeddings else None

    def forward(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Logits (top-left, bottom-right, centre), offsets (x and y of each), and tags of corners if there are any."""
        reduced = self.reduce(shared)
        pooled = self.tl_pool(reduced), self.br_pool(reduced), self.ct_pool(reduced)
        said = _each(self.heat, pooled), _each(self.offset, pooled)
        return said if self.tag is None else (*said, _each(self.tag, pooled[:2]))


class LiteralDetection(nn.Module):
    """Equation 9 as printed: the shared features pooled, and one convolution for each map; offsets are 0.

    Args:
        in_channels: of the shared features.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.heat = nn.ModuleList(nn.Conv2d(in_channels, 1, 3, padding=1) for _ in range(3))

    def forward(self, shared: Tensor) -> tuple[Tensor, ...]:
        """As `DetectionModules.forward`."""
        corners = corner_pool_sum(shared, shared, TOP_LEFT), corner_pool_sum(shared, shared, BOTTOM_RIGHT)
        heat = _each(self.heat, (*corners, center_pool(shared)))
        return heat, heat.new_zeros((heat.shape[0], 6, *heat.shape[2:]))


def _each(heads: nn.ModuleList, features: tuple[Tensor, ...]) -> Tensor:
    """The maps of some heads, each of its own features, one after another."""
    return torch.cat([head(x) for head, x in zip(heads, features, strict=True)], 1)


def _branch(config: SimpleConfig) -> DetectionModules | LiteralDetection | AnchorHead:
    """The detection branch."""
    shared = sum(config.branch_widths)
    if config.detection == "modules":
        return DetectionModules(shared, config.head_dim, config.head_mid, config.embeddings)
    if config.detection == "literal":
        return LiteralDetection(shared)
    levels = anchored_people.LEVELS
    return AnchorHead(config.branch_widths[1:], levels, anchored_people.ANCHORS, config.head_dim)


def pose_head(shared: int, num_keypoints: int) -> nn.Sequential:
    """Heatmaps of shared features: a 1x1 convolution with norm and ReLU, and one to the keypoints."""
    return nn.Sequential(*conv_bn(conv1x1(shared, shared), shared, relu=True), nn.Conv2d(shared, num_keypoints, 1))


def at_quarter(features: Sequence[Tensor]) -> Tensor:
    """All scales, enlarged to the finest and concatenated: `[B, sum of widths, H/4, W/4]`."""
    finest, *coarser = features
    size = (finest.shape[2], finest.shape[3])
    enlarged = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in coarser]
    return torch.cat((finest, *enlarged), 1)


class Simple(HRNetTrunk, PoseModel):
    """The network: images `[B, 3, H, W]` to heatmaps and what people are told apart by (see `forward`)."""

    family = "simple"
    paradigm = "single_network"
    output = "people"
    head_prefixes = ("pose_head.", "detection.", "grouping.")
    config: SimpleConfig

    def __init__(self, config: SimpleConfig = SIMPLE_W32, num_keypoints: int = 17, name: str = "simple") -> None:
        super().__init__(config)
        self.num_keypoints = num_keypoints
        self.name = name
        shared = sum(config.branch_widths)
        self.pose_head = pose_head(shared, num_keypoints)
        self.detection = _branch(config)
        if config.detection == "anchors":
            self.output = anchored_people.NAME  # type: ignore[misc]  # the only family whose settings decide it
        widths = config.grouping_widths
        self.grouping = PersonGrouping(num_keypoints, widths) if widths is not None else None
        init_weights(self)
        self._start()

    def _start(self) -> None:
        """The first weights of what is not started as HRNet is."""
        if isinstance(self.detection, AnchorHead):
            self.detection.start()
        else:
            for head in self.detection.heat:
                nn.init.constant_(cast(Tensor, head.bias), HEAT_BIAS)
        if self.grouping is not None:
            self.grouping.start()

    def forward(self, x: Tensor) -> list[Tensor]:
        """What is said of normalised images `[B, 3, H, W]` (see `spec`), by `detection`; maps are at 1/4.

        Returns:
            `modules`, `literal`: heatmaps `[B, K, H/4, W/4]`; logits `[B, 3, H/4, W/4]` of top-left corners,
            bottom-right corners and centres; offsets `[B, 6, H/4, W/4]`, x and y of each inside its pixel; with
            `embeddings` tags `[B, 2, H/4, W/4]` of corners.

            `anchors`: heatmaps, and `[B, N, 5]` for the anchors of `codecs.anchored_people.grid`.
        """
        features = self.features(x)
        shared = at_quarter(features)
        heatmaps = self.pose_head(shared)
        if isinstance(self.detection, AnchorHead):
            return [heatmaps, self.detection(features[1:])]
        return [heatmaps, *self.detection(shared)]

    def group(self, crops: Tensor) -> Tensor:
        """Which heatmaps inside boxes are the person's, 0..1.

        Args:
            crops: heatmaps inside R boxes, `[R, K, h, w]`, sides that are multiples of 8 (`codecs.people.CROP`).

        Returns:
            `[R, K, h, w]`; ones without a grouping network.
        """
        if self.grouping is None:
            return torch.ones_like(crops)
        # channels last: a sixth less time on a CPU
        masks: Tensor = self.grouping(crops.contiguous(memory_format=torch.channels_last))
        return masks
