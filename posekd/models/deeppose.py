"""DeepPose on a ResNet: one linear layer behind a global average pooling says all coordinates (MMPose's variant of
Toshev and Szegedy 2014).

State-dict keys are MMPose's (`backbone.*`, `keypoint_head.fc.*`). For distillation with simulated heatmaps it can also
say sigmas and scores, each by a linear layer of its own (`keypoint_head.fc_sigmas`, `keypoint_head.fc_scores`; nobody
has released such a network).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from posekd.codecs.coordinates import Coordinates
from posekd.models.base import PoseModel, check_counts, check_size
from posekd.models.layers import init_weights
from posekd.models.simplebaseline import add_resnet, resnet_features
from posekd.structures import InputSpec

_COCO_INPUT = InputSpec()


@dataclass(frozen=True)
class DeepPoseConfig:
    """Settings of a DeepPose network; the defaults are ResNet-50.

    Attributes:
        blocks: bottlenecks in each of the four ResNet stages.
        width: stem channels and width of the first stage's bottlenecks; each stage doubles it.
        scores: whether it says a confidence of each keypoint; without, all are 1.
        sigmas: whether it says the extent of each keypoint's simulated heatmap.
        spec: default input.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    scores: bool = False
    sigmas: bool = False
    spec: InputSpec = _COCO_INPUT

    def __post_init__(self) -> None:
        check_counts(self, ("blocks", "width"))
        if len(self.blocks) != 4:
            raise ValueError(f"blocks counts the bottlenecks of four ResNet stages, got {self.blocks!r}")
        check_size(self.spec.size, self.stride)

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the coarsest map: input sides must be multiples of it."""
        return 32


DEEPPOSE_R50 = DeepPoseConfig()


class _ResNet(nn.Module):
    """Images to the features of the last stage."""

    def __init__(self, config: DeepPoseConfig) -> None:
        super().__init__()
        self.channels = add_resnet(self, config.blocks, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return resnet_features(self, x)


class _DeepPoseHead(nn.Module):
    def __init__(self, config: DeepPoseConfig, channels: int, num_keypoints: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 2 * num_keypoints)
        self.fc_scores = nn.Linear(channels, num_keypoints) if config.scores else None
        self.fc_sigmas = nn.Linear(channels, 2 * num_keypoints) if config.sigmas else None

    def forward(self, features: Tensor) -> Coordinates:
        pooled = self.pool(features).flatten(1)
        coords = self.fc(pooled).unflatten(1, (-1, 2))
        scores = None if self.fc_scores is None else self.fc_scores(pooled)[..., None]
        sigmas = None if self.fc_sigmas is None else functional.softplus(self.fc_sigmas(pooled)).unflatten(1, (-1, 2))
        return Coordinates(coords, scores, sigmas)


class DeepPose(PoseModel):
    """The top-down regression network: images `[B, 3, H, W]` to coordinates, which no activation limits to 0..1."""

    family = "deeppose"
    output = "coordinates"
    head_prefixes = ("keypoint_head.",)

    def __init__(self, config: DeepPoseConfig = DEEPPOSE_R50, num_keypoints: int = 17, name: str = "deeppose") -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        self.name = name
        self.backbone = _ResNet(config)
        self.keypoint_head = _DeepPoseHead(config, self.backbone.channels, num_keypoints)
        init_weights(self)
        for module in self.keypoint_head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Coordinates:
        """Coordinates of normalised images `[B, 3, H, W]` (see `spec`), in training and evaluation.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        check_size((x.shape[-2], x.shape[-1]), self.config.stride)
        return self.keypoint_head(self.backbone(x))
