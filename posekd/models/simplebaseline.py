"""SimpleBaseline: a ResNet and three transposed convolutions (Xiao et al. 2018).

State-dict keys are those of the official repositories (`pose_resnet`). Their networks were trained on BGR
images normalised with the RGB statistics in RGB order; the input specification says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from posekd.models.base import PoseModel, check_counts, check_size
from posekd.models.layers import Bottleneck, init_weights
from posekd.structures import InputSpec

_BGR_INPUT = InputSpec(bgr=True)


@dataclass(frozen=True)
class SimpleBaselineConfig:
    """Settings of a SimpleBaseline network; the defaults are ResNet-50.

    Attributes:
        blocks: bottlenecks in each of the four ResNet stages.
        width: stem channels and width of the first stage's bottlenecks; each stage doubles it.
        deconv_width: channels of the three transposed convolutions.
        spec: default input.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    deconv_width: int = 256
    spec: InputSpec = _BGR_INPUT

    def __post_init__(self) -> None:
        check_counts(self, ("blocks", "width", "deconv_width"))
        if len(self.blocks) != 4:
            raise ValueError(f"blocks counts the bottlenecks of four ResNet stages, got {self.blocks!r}")
        check_size(self.spec.size, self.stride)

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the coarsest map: input sides must be multiples of it."""
        return 32


SIMPLEBASELINE_R50 = SimpleBaselineConfig()
SIMPLEBASELINE_R101 = SimpleBaselineConfig(blocks=(3, 4, 23, 3))
SIMPLEBASELINE_R152 = SimpleBaselineConfig(blocks=(3, 8, 36, 3))


class SimpleBaseline(PoseModel):
    """The top-down pose network: images `[B, 3, H, W]` to heatmaps `[B, K, H/4, W/4]`."""

    family = "simplebaseline"
    head_prefixes = ("deconv_layers.", "final_layer.")

    def __init__(
        self,
        config: SimpleBaselineConfig = SIMPLEBASELINE_R50,
        num_keypoints: int = 17,
        name: str = "simplebaseline",
    ) -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        self.name = name
        channels = add_resnet(self, config.blocks, config.width)
        self.deconv_layers = _deconvolutions(channels, config.deconv_width)
        self.final_layer = nn.Conv2d(config.deconv_width, num_keypoints, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Heatmaps `[B, K, H/4, W/4]` of normalised images `[B, 3, H, W]` (see `spec`).

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        check_size((x.shape[-2], x.shape[-1]), self.config.stride)
        return self.final_layer(self.deconv_layers(resnet_features(self, x)))


def add_resnet(module: nn.Module, blocks: tuple[int, ...], width: int) -> int:
    """Gives a module the layers of a ResNet, under their usual names, and says how many channels the last has."""
    module.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    module.bn1 = nn.BatchNorm2d(width)
    module.relu = nn.ReLU(inplace=True)
    module.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    channels = width
    for i, count in enumerate(blocks):
        planes = width * 2**i
        setattr(module, f"layer{i + 1}", _stage(channels, planes, count, stride=2 if i else 1))
        channels = planes * Bottleneck.expansion
    return channels


def resnet_features(module: Any, x: Tensor) -> Tensor:
    """Features `[B, C, H/32, W/32]` of images `[B, 3, H, W]`, through the four stages that `add_resnet` made."""
    x = module.maxpool(module.relu(module.bn1(module.conv1(x))))
    return module.layer4(module.layer3(module.layer2(module.layer1(x))))


def _stage(in_channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, planes, stride)
    return nn.Sequential(first, *(Bottleneck(planes * Bottleneck.expansion, planes) for _ in range(blocks - 1)))


def _deconvolutions(in_channels: int, width: int, count: int = 3) -> nn.Sequential:
    """`count` times transposed convolution 4x4 stride 2, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers.append(nn.ConvTranspose2d(width if i else in_channels, width, 4, stride=2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
