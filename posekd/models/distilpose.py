"""DistilPose's students (Ye et al. 2023): TokenPose's encoder, and each keypoint's coordinates from its token.

State-dict keys are those of the released code (`backbone.*`, `keypoint_head.tokenhead.*`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from posekd.codecs.coordinates import Coordinates
from posekd.models.base import PoseModel
from posekd.models.layers import init_weights
from posekd.models.tokenpose import TokenPoseConfig, check_input, make_backbone, make_encoder, make_head
from posekd.models.tokens import init_tokens


@dataclass(frozen=True)
class DistilPoseConfig(TokenPoseConfig):
    """Settings of a DistilPose network, beside those of TokenPose; the defaults are DistilPose-S.

    Attributes:
        head_hidden: inner width of the head, which has one layer only where tokens are longer than half of it. (The
            released 64 has therefore no effect.)
        scores: whether it says a confidence of each keypoint; without, all are 1.
        sigmas: whether it says the extent of each keypoint's simulated heatmap.
    """

    head_hidden: int = 64
    scores: bool = True
    sigmas: bool = True

    @property
    def numbers(self) -> int:
        """How many numbers the head says of a keypoint: x, y, then the score, then two sigmas."""
        return 2 + self.scores + 2 * self.sigmas


NAMED = {
    "distilpose_s": DistilPoseConfig(),
    "distilpose_l": DistilPoseConfig(modules=(1, 4)),
}


class _DistilPoseHead(nn.Module):
    """The encoder, and the layers that turn a keypoint token into numbers."""

    def __init__(self, config: DistilPoseConfig, num_keypoints: int) -> None:
        super().__init__()
        self.scores, self.sigmas = config.scores, config.sigmas
        self.tokenhead = make_encoder(config, num_keypoints)
        with torch.random.fork_rng(devices=()):  # students that say more or less start from the same weights elsewhere
            self.tokenhead.mlp_head = make_head(config, config.numbers)

    def forward(self, features: Tensor) -> Coordinates:
        keypoints, visual = self.tokenhead(features)
        numbers: Tensor = self.tokenhead.get_submodule("mlp_head")(keypoints)
        scores = numbers[..., 2:3] if self.scores else None
        sigmas = functional.softplus(numbers[..., -2:]) if self.sigmas else None
        return Coordinates(torch.sigmoid(numbers[..., :2]), scores, sigmas, keypoints, visual)


class DistilPose(PoseModel):
    """The top-down regression network: images `[B, 3, H, W]` to coordinates, confidences, sigmas and tokens."""

    family = "distilpose"
    output = "coordinates"
    gives_tokens = True
    head_prefixes = ("keypoint_head.",)

    def __init__(
        self, config: DistilPoseConfig = NAMED["distilpose_s"], num_keypoints: int = 17, name: str = "distilpose"
    ) -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        self.name = name
        self.backbone = make_backbone(config)
        self.keypoint_head = _DistilPoseHead(config, num_keypoints)
        init_weights(self)
        init_tokens(self)

    def forward(self, x: Tensor) -> Coordinates:
        """What the network says of normalised images `[B, 3, H, W]` (see `spec`), in training and evaluation.

        Raises:
            ValueError: another size than `spec.size`, for which the position table was made.
        """
        check_input(self, x)
        return self.keypoint_head(self.backbone.features(x)[0])
