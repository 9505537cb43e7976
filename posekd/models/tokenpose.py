"""TokenPose (Li et al. 2021): a convolutional backbone, a transformer over tokens, a heatmap from each keypoint token.

State-dict keys are those of DistilPose's teachers (`backbone.*`, `keypoint_head.tokenpose.*`); checkpoints of the
TokenPose repository (`features.*`, or `pre_feature.*` and `transformer.*`) load through `own_names`. Its TokenPose-S
scales attention by dim^-1/2, all others by (dim / heads)^-1/2: the same shapes, but other networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from posekd.codecs.heatmaps import TokenHeatmaps
from posekd.models.base import PoseModel, check_counts, check_size
from posekd.models.hrnet import HRNetConfig, HRNetTrunk
from posekd.models.layers import Bottleneck, conv3x3, init_weights
from posekd.models.tokens import TokenEncoder, init_tokens
from posekd.structures import InputSpec

_COCO_INPUT = InputSpec()
_STRIDE = 4  # input pixels per feature-map pixel
_STEM = re.compile(r"(conv|bn|layer)\d\.")


@dataclass(frozen=True)
class TokenPoseConfig:
    """Settings of a TokenPose network; the defaults are DistilPose's small teacher.

    Attributes:
        modules: HRNet exchange units in stages 2, 3, 4 of the backbone; None is the stem network alone.
        width: channels of HRNet's highest branch; without HRNet nothing depends on it.
        blocks: residual blocks in each branch of HRNet.
        stem_width: channels of the stem, a quarter of those of the bottlenecks behind it.
        stem_blocks: number of these bottlenecks.
        patch: `(height, width)` of a patch in feature-map pixels.
        dim: length of a token, a multiple of 4 and of `heads`.
        depth: blocks of each transformer.
        heads: attention heads.
        chained: transformers one behind the other.
        hidden: inner width of the blocks' MLP.
        head_hidden: inner width of the head, which has one layer only where the tokens are longer than half of it.
        learned_positions: a learnt table of positions, for keypoint tokens too, instead of the fixed sine table.
        scale_by_dim: attention scaled by dim^-1/2 instead of (dim / heads)^-1/2.
        spec: default input; the position table fits its size and no other.
    """

    modules: tuple[int, ...] | None = None
    width: int = 48
    blocks: int = 4
    stem_width: int = 64
    stem_blocks: int = 4
    patch: tuple[int, ...] = (4, 3)
    dim: int = 192
    depth: int = 12
    heads: int = 8
    chained: int = 1
    hidden: int = 576
    head_hidden: int = 384
    learned_positions: bool = False
    scale_by_dim: bool = False
    spec: InputSpec = _COCO_INPUT

    def __post_init__(self) -> None:
        counts = ("width", "blocks", "stem_width", "stem_blocks", "patch", "dim", "depth", "heads", "chained", "hidden")
        check_counts(self, (*counts, "head_hidden"))
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim must be a multiple of 4 and of heads ({self.heads}), got {self.dim}")
        if len(self.patch) != 2:
            raise ValueError(f"patch is (height, width) in feature-map pixels, got {self.patch!r}")
        for side, patch, what in zip(self.spec.size, self.patch, ("height", "width"), strict=True):
            if side % (_STRIDE * patch):
                raise ValueError(f"the input's {what} must be a multiple of {_STRIDE * patch}, got {side}")
        if self.modules is not None:
            check_size(self.spec.size, self.backbone.stride)

    @property
    def backbone(self) -> HRNetConfig:
        """The settings of an HRNet backbone."""
        return HRNetConfig(
            width=self.width, modules=self.modules or (1,), blocks=self.blocks, stem_width=self.stem_width,
            stage1_width=self.stem_width, stage1_blocks=self.stem_blocks, spec=self.spec,
        )  # fmt: skip

    @property
    def channels(self) -> int:
        """Channels of the map that is cut into patches."""
        return Bottleneck.expansion * self.stem_width if self.modules is None else self.width

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """`(height, width)` of feature maps and heatmaps."""
        return self.spec.size[0] // _STRIDE, self.spec.size[1] // _STRIDE

    @property
    def scale(self) -> float:
        """What attention's products are multiplied by."""
        return float((self.dim if self.scale_by_dim else self.dim // self.heads) ** -0.5)


NAMED = {
    "tokenpose_s": TokenPoseConfig(scale_by_dim=True),
    "tokenpose_b": TokenPoseConfig(modules=(1, 4), width=32),
    "tokenpose_l_d24": TokenPoseConfig(modules=(1, 4), depth=8, heads=12, chained=3),
    "distilpose_teacher_stem": TokenPoseConfig(),
    "distilpose_teacher_hrnet_w48": TokenPoseConfig(modules=(1, 4, 3)),
}


class StemNet(nn.Module):
    """Two strided convolutions and some bottlenecks: images `[B, 3, H, W]` to features `[B, 4 width, H/4, W/4]`."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, width, 2), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, 2), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        wide = Bottleneck.expansion * width
        self.layer1 = nn.Sequential(*(Bottleneck(wide if i else width, width) for i in range(blocks)))

    def features(self, x: Tensor) -> list[Tensor]:
        """A list of one, as HRNet's trunk gives its branches."""
        x = self.relu(self.bn1(self.conv1(x)))
        return [self.layer1(self.relu(self.bn2(self.conv2(x))))]


def make_backbone(config: TokenPoseConfig) -> StemNet | HRNetTrunk:
    """The convolutional part, whose `features` are a list of maps, the finest first."""
    if config.modules is None:
        return StemNet(config.stem_width, config.stem_blocks)
    return HRNetTrunk(config.backbone)


def make_encoder(config: TokenPoseConfig, num_keypoints: int) -> TokenEncoder:
    """The transformer over the backbone's finest map."""
    (height, width), (rows, columns) = config.heatmap_size, config.patch
    return TokenEncoder(
        config.channels, (height // rows, width // columns), (rows, columns), num_keypoints, config.dim, config.depth,
        config.heads, config.hidden, config.scale, config.chained, config.learned_positions,
    )  # fmt: skip


def make_head(config: TokenPoseConfig, numbers: int) -> nn.Sequential:
    """From a keypoint token to `numbers` numbers; of two layers only where tokens are at most half the inner width."""
    length = config.dim * config.chained
    layers: list[nn.Module] = [nn.LayerNorm(length)]
    if 2 * length <= config.head_hidden:
        layers += [nn.Linear(length, config.head_hidden), nn.LayerNorm(config.head_hidden)]
        length = config.head_hidden
    return nn.Sequential(*layers, nn.Linear(length, numbers))


def check_input(model: PoseModel, x: Tensor) -> None:
    """Refuses images of another size than that of the position table.

    Raises:
        ValueError: says both sizes.
    """
    size = (x.shape[-2], x.shape[-1])
    if size != tuple(model.spec.size):
        raise ValueError(
            f"{model.name} was made for images of {model.spec.size[0]}x{model.spec.size[1]} (height x width), got "
            f"{size[0]}x{size[1]}: create it with size={size}"
        )


class _TokenPoseHead(nn.Module):
    """The encoder and, behind each keypoint token, the layers that draw its heatmap."""

    def __init__(self, config: TokenPoseConfig, num_keypoints: int) -> None:
        super().__init__()
        self.tokenpose = make_encoder(config, num_keypoints)
        self.tokenpose.mlp_head = make_head(config, config.heatmap_size[0] * config.heatmap_size[1])

    def forward(self, features: Tensor) -> TokenHeatmaps:
        keypoints, visual = self.tokenpose(features)
        heatmaps: Tensor = self.tokenpose.get_submodule("mlp_head")(keypoints).unflatten(2, features.shape[2:])
        return TokenHeatmaps(heatmaps, keypoints, visual)


class TokenPose(PoseModel):
    """The top-down pose network: images `[B, 3, H, W]` to heatmaps and tokens."""

    family = "tokenpose"
    gives_tokens = True
    head_prefixes = ("keypoint_head.",)

    def __init__(
        self, config: TokenPoseConfig = NAMED["tokenpose_b"], num_keypoints: int = 17, name: str = "tokenpose"
    ) -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        self.name = name
        self.backbone = make_backbone(config)
        self.keypoint_head = _TokenPoseHead(config, num_keypoints)
        init_weights(self)
        init_tokens(self)

    def forward(self, x: Tensor) -> TokenHeatmaps:
        """Heatmaps and tokens of normalised images `[B, 3, H, W]` (see `spec`), in training and evaluation.

        Raises:
            ValueError: another size than `spec.size`, for which the position table was made.
        """
        check_input(self, x)
        return self.keypoint_head(self.backbone.features(x)[0])

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint of the TokenPose repository under this network's names; others as they are."""
        return {_own_name(key): value for key, value in state.items()}


def _own_name(key: str) -> str:
    head = "keypoint_head.tokenpose."
    start, _, rest = key.partition(".")
    if start == "features":
        return ("backbone." if _STEM.match(rest) else head) + rest
    return {"pre_feature": "backbone.", "transformer": head}.get(start, start + ".") + rest
