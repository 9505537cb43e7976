"""HRNet: parallel branches from 1/4 to 1/32 resolution that exchange features (Sun et al. 2019).

State-dict keys are those of the official repository (leoxiaobin/deep-high-resolution-net.pytorch), so its
checkpoints load strictly. `HRNetTrunk` gives the branch features and is what other families build on;
`HRNet` adds the top-down pose head. ELPN is the same network with lighter blocks: see `elpn.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, Literal, get_args

from torch import Tensor, nn

from posekd.models.base import PoseModel, check_counts, check_size
from posekd.models.layers import (
    BasicBlock,
    Bottleneck,
    GlobalContext,
    SeparableConv,
    conv1x1,
    conv3x3,
    conv_bn,
    init_weights,
)
from posekd.structures import InputSpec

BlockKind = Literal["basic", "light"]
Stage1Kind = Literal["bottleneck", "efficient"]

_COCO_INPUT = InputSpec()


@dataclass(frozen=True)
class HRNetConfig:
    """Settings of an HRNet-shaped network; the defaults are HRNet-W32.

    Attributes:
        width: C, channels of the highest-resolution branch.
        modules: exchange units in stages 2, 3, 4 (a shorter tuple stops at an earlier stage).
        blocks: residual blocks per branch and unit.
        widths: channels of each branch; None means C, 2C, 4C, 8C.
        stem_width: channels after the two strided convolutions.
        stage1_width: width of stage 1's bottlenecks (they give four times as many channels).
        stage1_blocks: bottlenecks in stage 1.
        final_multiscale: whether the last unit gives every scale instead of the highest only. The pose head
            reads the highest only; the paper behind ELPN's Table 5 counted the rest all the same.
        block: "basic", or "light" with separable convolutions (ELPN).
        stage1_block: "bottleneck", or "efficient" with a global context block (ELPN).
        final_gc: whether there is a global context block before the head (ELPN).
        dw_bn: batch norm and ReLU behind the depthwise convolutions of light blocks.
        gc_ratio: r of the global context blocks, whose inner width is `max(gc_min_width, channels // r)`.
        gc_min_width: floor of that width.
        spec: default input.
    """

    width: int = 32
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: int = 4
    widths: tuple[int, ...] | None = None
    stem_width: int = 64
    stage1_width: int = 64
    stage1_blocks: int = 4
    final_multiscale: bool = False
    block: BlockKind = "basic"
    stage1_block: Stage1Kind = "bottleneck"
    final_gc: bool = False
    dw_bn: bool = True
    gc_ratio: int = 16
    gc_min_width: int = 4
    spec: InputSpec = _COCO_INPUT

    def __post_init__(self) -> None:
        check_counts(self, ("width", "modules", "blocks", "stem_width", "stage1_width", "stage1_blocks"))
        check_counts(self, ("gc_ratio", "gc_min_width"))
        if self.widths is not None:
            check_counts(self, ("widths",))
        if not 1 <= len(self.modules) <= 3:
            raise ValueError(f"modules counts the units of stages 2, 3, 4 (one to three), got {self.modules!r}")
        if len(self.branch_widths) != len(self.modules) + 1:
            raise ValueError(f"{len(self.modules)} stages need {len(self.modules) + 1} widths, got {self.widths!r}")
        for name, kinds in (("block", BlockKind), ("stage1_block", Stage1Kind)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} must be one of {get_args(kinds)}, got {getattr(self, name)!r}")
        check_size(self.spec.size, self.stride)

    @property
    def branch_widths(self) -> tuple[int, ...]:
        """Channels of each branch, highest resolution first."""
        return self.widths or tuple(self.width * 2**i for i in range(len(self.modules) + 1))

    @property
    def stride(self) -> int:
        """Input pixels per pixel of the coarsest branch: input sides must be multiples of it."""
        return 4 * 2 ** len(self.modules)


HRNET_W32 = HRNetConfig()
HRNET_W48 = HRNetConfig(width=48)


class ExchangeUnit(nn.Module):
    """One HRNet module: residual blocks on each branch, then an exchange between all branches.

    Takes and gives a list of `[B, C_i, H/2^i, W/2^i]`, highest resolution first.

    Args:
        widths: C_i, channels of each branch.
        blocks: residual blocks per branch.
        make_block: a residual block from its number of channels.
        multiscale: False gives the highest resolution only (a list of one).
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        make_block: Callable[[int], nn.Module],
        multiscale: bool = True,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(make_block(w) for _ in range(blocks))) for w in widths)
        targets = range(len(widths) if multiscale else 1)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_path(widths, source, target) for source in range(len(widths))) for target in targets
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Runs the branches, then sums the contributions of all branches at each resolution."""
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        fused = []
        for row in self.fuse_layers:
            paths: Iterable[nn.Module] = row  # type: ignore[assignment]
            fused.append(self.relu(reduce(add, (path(x) for path, x in zip(paths, features, strict=True)))))
        return fused


def _fuse_path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From branch `source` to the resolution and width of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:  # coarser to finer
        path = conv_bn(conv1x1(widths[source], widths[target]), widths[target], relu=False)
        path.append(nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
        return path
    steps = target - source  # finer to coarser: strided 3x3 convolutions that widen at the last step
    outs = [widths[source]] * (steps - 1) + [widths[target]]
    return nn.Sequential(
        *(conv_bn(conv3x3(widths[source], out, 2), out, relu=k < steps - 1) for k, out in enumerate(outs))
    )


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """To the branches of the next stage: existing ones change width if necessary, new ones halve the resolution."""
    paths: list[nn.Module] = []
    for i, width in enumerate(after):
        if i >= len(before):
            # A new branch's convolution is nested one level deeper in the official checkpoints.
            paths.append(nn.Sequential(conv_bn(conv3x3(before[-1], width, 2), width, relu=True)))
        elif before[i] != width:
            paths.append(conv_bn(conv3x3(before[i], width), width, relu=True))
        else:
            paths.append(nn.Identity())
    return nn.ModuleList(paths)


class HRNetTrunk(nn.Module):
    """Stem, stage 1 and the branch stages: `[B, 3, H, W]` to a list of branch features.

    Branch i is `[B, widths[i], H/4/2^i, W/4/2^i]`; without `final_multiscale` only branch 0 is given.
    A subclass adds its head at the top level, as the official checkpoints have it, and calls
    `init_weights` once it is complete.
    """

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = conv3x3(3, config.stem_width, 2)
        self.bn1 = nn.BatchNorm2d(config.stem_width)
        self.conv2 = conv3x3(config.stem_width, config.stem_width, 2)
        self.bn2 = nn.BatchNorm2d(config.stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage1(config)
        make_block = _branch_block(config)
        widths: tuple[int, ...] = (config.stage1_width * Bottleneck.expansion,)
        for i, count in enumerate(config.modules):
            stage, last = i + 2, i == len(config.modules) - 1
            after = config.branch_widths[: i + 2]
            setattr(self, f"transition{stage - 1}", _transition(widths, after))
            units = (
                ExchangeUnit(after, config.blocks, make_block, config.final_multiscale or not (last and k == count - 1))
                for k in range(count)
            )
            setattr(self, f"stage{stage}", nn.Sequential(*units))
            widths = after

    def features(self, x: Tensor) -> list[Tensor]:
        """The branch features of images `[B, 3, H, W]`, highest resolution first.

        Raises:
            ValueError: H or W is not a multiple of `config.stride`.
        """
        check_size((x.shape[-2], x.shape[-1]), self.config.stride)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        features = [self.layer1(x)]
        for i in range(len(self.config.modules)):
            paths = getattr(self, f"transition{i + 1}")
            # Existing branches continue; a new one starts from the coarsest.
            features = [path(features[min(k, len(features) - 1)]) for k, path in enumerate(paths)]
            features = getattr(self, f"stage{i + 2}")(features)
        return features

    def forward(self, x: Tensor) -> Any:
        """`features(x)`; a subclass with a head gives its own outputs."""
        return self.features(x)


def _stage1(config: HRNetConfig) -> nn.Sequential:
    """Stage 1: bottlenecks at 1/4 resolution."""
    out_channels = config.stage1_width * Bottleneck.expansion
    layers = []
    for i in range(config.stage1_blocks):
        context = _global_context(config, out_channels) if config.stage1_block == "efficient" else None
        in_channels = out_channels if i else config.stem_width
        layers.append(Bottleneck(in_channels, config.stage1_width, context=context))
    return nn.Sequential(*layers)


def _branch_block(config: HRNetConfig) -> Callable[[int], nn.Module]:
    conv = conv3x3 if config.block == "basic" else partial(SeparableConv, dw_bn=config.dw_bn)
    return partial(BasicBlock, conv=conv)


def _global_context(config: HRNetConfig, channels: int) -> GlobalContext:
    return GlobalContext(channels, config.gc_ratio, config.gc_min_width)


class HRNet(HRNetTrunk, PoseModel):
    """The top-down pose network: images `[B, 3, H, W]` to heatmaps `[B, K, H/4, W/4]`."""

    family = "hrnet"
    head_prefixes = ("final_layer.", "gc.")

    def __init__(self, config: HRNetConfig = HRNET_W32, num_keypoints: int = 17, name: str = "hrnet") -> None:
        super().__init__(config)
        self.num_keypoints = num_keypoints
        self.name = name
        width = config.branch_widths[0]
        self.gc: nn.Module = _global_context(config, width) if config.final_gc else nn.Identity()
        self.final_layer = nn.Conv2d(width, num_keypoints, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Heatmaps `[B, K, H/4, W/4]` of normalised images `[B, 3, H, W]` (see `spec`)."""
        return self.final_layer(self.gc(self.features(x)[0]))
