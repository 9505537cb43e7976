"""Stacked Hourglass (Newell et al. 2016) in the sizes of FPD (Zhang et al. 2019).

Two networks go by this name in FPD. The paper's tables count the original one (`stem="paper"`), whose stem has the
fixed widths 64, 128, 128; the released code and its checkpoints have a stem that scales with the width
(`stem="fpd"`: F/4, F/2, F). After the stem they are the same, with the released state-dict names. Checkpoints of
princeton-vl/pytorch_stacked_hourglass fit `stem="paper"` and are renamed while they are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from posekd.models.base import PoseModel, check_counts, check_size
from posekd.structures import InputSpec

Stem = Literal["paper", "fpd"]

LEVELS = 4  # halvings in one hourglass: from 1/4 of the input down to 1/64
STRIDE = 4 * 2**LEVELS  # input pixels per pixel of the coarsest map: input sides must be multiples of it
_FPD_INPUT = InputSpec(size=(256, 256), bgr=True)
_PRINCETON_INPUT = InputSpec(size=(256, 256), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True)
class HourglassConfig:
    """Settings of a stacked Hourglass; the defaults are FPD's student.

    Attributes:
        stages: hourglasses in a row, each with its own heatmaps.
        width: F, channels of the hourglasses.
        stem: "paper" (64, 128, 128, F channels) or "fpd" (F/4, F/2, F, F), see above.
        blocks: residual blocks at each place of an hourglass.
        spec: default input. FPD's networks were trained on BGR, normalised by the RGB statistics in RGB order.
    """

    stages: int = 4
    width: int = 128
    stem: Stem = "paper"
    blocks: int = 1
    spec: InputSpec = _FPD_INPUT

    def __post_init__(self) -> None:
        check_counts(self, ("stages", "width", "blocks"))
        if self.stem not in get_args(Stem):
            raise ValueError(f"stem must be one of {get_args(Stem)}, got {self.stem!r}")
        if self.width % 8:
            raise ValueError(f"width must be a multiple of 8, got {self.width}")
        check_size(self.spec.size, STRIDE)

    @property
    def stem_widths(self) -> tuple[int, int, int]:
        """Channels after the stem's convolution and its first two residual blocks."""
        return (64, 128, 128) if self.stem == "paper" else (self.width // 4, self.width // 2, self.width)


HOURGLASS = HourglassConfig()

NAMED = {
    "hourglass": HOURGLASS,
    "hourglass_8x256": replace(HOURGLASS, stages=8, width=256),
    "hourglass_4x128": HOURGLASS,
    "hourglass_fpd_8x256": replace(HOURGLASS, stages=8, width=256, stem="fpd"),
    "hourglass_fpd_4x128": replace(HOURGLASS, stem="fpd"),
    "hourglass_princeton_8x256": replace(HOURGLASS, stages=8, width=256, spec=_PRINCETON_INPUT),
    "hourglass_princeton_2x256": replace(HOURGLASS, stages=2, width=256, spec=_PRINCETON_INPUT),
}
"""By name: the paper's teacher and student, the released ones, and princeton-vl's, which saw RGB in 0..1."""


class PreactBottleneck(nn.Module):
    """Batch norm and ReLU before each of three convolutions, `[B, in, H, W] -> [B, out, H, W]`.

    The inner width is half of `out`. A change of width gives the shortcut a bare 1x1 convolution of the raw input.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = out_channels // 2
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1)
        self.relu = nn.ReLU(inplace=True)
        same = in_channels == out_channels
        self.downsample = None if same else nn.Sequential(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`shortcut(x) + residual(x)`."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + (x if self.downsample is None else self.downsample(x))


def residual_blocks(width: int, count: int) -> nn.Sequential:
    """`count` blocks of one width."""
    return nn.Sequential(*(PreactBottleneck(width, width) for _ in range(count)))


UPPER, DOWN, UP, BOTTOM = range(4)
"""Places in a level of an hourglass: the branch that stays at its resolution, the one that goes down, the one that
comes up again and, at the innermost level only, the bottom between them. The released state dicts count so."""


class HourglassModule(nn.Module):
    """Down `LEVELS` resolutions and up again, `[B, F, H, W] -> [B, F, H, W]`; H and W multiples of `2 ** LEVELS`.

    Args:
        make: the blocks of (level, place); level 0 is the innermost, as in the released state dicts.
    """

    def __init__(self, make: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.hg = nn.ModuleList(
            nn.ModuleList(make(level, place) for place in range(3 if level else 4)) for level in range(LEVELS)
        )
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        """At each resolution, the sum of the branch that stays there and the branch from the coarser levels."""
        levels: list[Any] = list(self.hg)
        stayed: list[Tensor] = []
        for level in reversed(levels):
            stayed.append(level[UPPER](x))
            x = level[DOWN](self.pool(x))
        x = levels[0][BOTTOM](x)
        for level in levels:
            x = stayed.pop() + self.upsample(level[UP](x))
        return x


class StackedHourglass(PoseModel):
    """Hourglasses in a row: images `[B, 3, H, W]` to the heatmaps `[B, K, H/4, W/4]` of every stage.

    Args:
        config: settings with `stages` and `width`.
        num_keypoints: K.
        name: the name it was created by.
        stem: channels after the first convolution, and the three blocks behind it (with a pooling before the second).
        make: the blocks of an hourglass from (level, place).
        after: the layers between an hourglass and its `fc`.
    """

    head_prefixes = ("score.", "score_.")

    def __init__(
        self,
        config: Any,
        num_keypoints: int,
        name: str,
        stem: tuple[int, nn.Module, nn.Module, nn.Module],
        make: Callable[[int, int], nn.Module],
        after: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.config = config
        self.num_keypoints = num_keypoints
        self.name = name
        first, self.layer1, self.layer2, self.layer3 = stem
        F, stages = config.width, range(config.stages)
        merges = stages[:-1]  # nothing follows the last stage
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.hg = nn.ModuleList(HourglassModule(make) for _ in stages)
        self.res = nn.ModuleList(after() for _ in stages)
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Conv2d(F, F, 1), nn.BatchNorm2d(F), nn.ReLU(inplace=True)) for _ in stages
        )
        self.score = nn.ModuleList(nn.Conv2d(F, num_keypoints, 1) for _ in stages)
        self.fc_ = nn.ModuleList(nn.Conv2d(F, F, 1) for _ in merges)
        self.score_ = nn.ModuleList(nn.Conv2d(num_keypoints, F, 1) for _ in merges)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Heatmaps `[B, K, H/4, W/4]` of each stage, first to last, of normalised images (see `spec`).

        Raises:
            ValueError: H or W is not a multiple of 64.
        """
        check_size((x.shape[-2], x.shape[-1]), STRIDE)
        x = self.maxpool(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        x = self.layer3(self.layer2(x))
        heatmaps = []
        for i, hourglass in enumerate(self.hg):
            y = self.fc[i](self.res[i](hourglass(x)))
            heatmaps.append(self.score[i](y))
            if i < len(self.fc_):
                x = x + self.fc_[i](y) + self.score_[i](heatmaps[-1])
        return heatmaps


class Hourglass(StackedHourglass):
    """The Hourglass of residual blocks. Fresh weights are PyTorch's own, as in the official code."""

    family = "hourglass"

    def __init__(self, config: HourglassConfig = HOURGLASS, num_keypoints: int = 16, name: str = "hourglass") -> None:
        F, blocks = config.width, config.blocks
        first, second, third = config.stem_widths
        pairs = ((first, second), (second, third), (third, F))
        layer1, layer2, layer3 = (nn.Sequential(PreactBottleneck(*pair)) for pair in pairs)
        super().__init__(
            config,
            num_keypoints,
            name,
            stem=(first, layer1, layer2, layer3),
            make=lambda level, place: residual_blocks(F, blocks),
            after=lambda: residual_blocks(F, blocks),
        )

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A princeton-vl checkpoint under the names used here; any other as it is.

        princeton-vl gives every residual block a shortcut convolution and runs it only where the width changes; the
        ones that never ran are left out.
        """
        if "pre.0.conv.weight" not in state:
            return dict(state)
        idle = {
            key.removesuffix("weight")
            for key, value in state.items()
            if key.endswith(".skip_layer.conv.weight") and value.shape[0] == value.shape[1]
        }
        return {_from_princeton(key): value for key, value in state.items() if not key.startswith(tuple(idle))}


_PRINCETON = (
    (r"pre\.0\.conv", "conv1"),
    (r"pre\.0\.bn", "bn1"),
    (r"pre\.1", "layer1.0"),
    (r"pre\.3", "layer2.0"),
    (r"pre\.4", "layer3.0"),
    (r"features\.(\d+)\.0", r"res.\1.0"),
    (r"features\.(\d+)\.1\.conv", r"fc.\1.0"),
    (r"features\.(\d+)\.1\.bn", r"fc.\1.1"),
    (r"outs\.(\d+)\.conv", r"score.\1"),
    (r"merge_features\.(\d+)\.conv\.conv", r"fc_.\1"),
    (r"merge_preds\.(\d+)\.conv\.conv", r"score_.\1"),
)
_PRINCETON_PLACES = {"up1": UPPER, "low1": DOWN, "low3": UP, "low2": BOTTOM}


def _from_princeton(key: str) -> str:
    """A princeton-vl key under the names used here."""
    inside = re.match(r"hgs\.(\d+)\.0((?:\.low2)*?)\.(up1|low1|low3|low2)\.(?!low|up)", key)
    if inside:
        stage, deeper, place = inside.groups()
        level = LEVELS - 1 - deeper.count("low2")  # there the outermost level is the first
        key = f"hg.{stage}.hg.{level}.{_PRINCETON_PLACES[place]}.0.{key[inside.end() :]}"
    else:
        for theirs, ours in _PRINCETON:
            key = re.sub(rf"^{theirs}\.", f"{ours}.", key)
    key = key.replace(".skip_layer.conv.", ".downsample.0.")
    return re.sub(r"\.(conv[123])\.conv\.", r".\1.", key)
