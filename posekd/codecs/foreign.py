"""What networks from elsewhere say, as heatmaps: their meaning is told by the shapes of their outputs, or given.

**SimCC** (RTMPose: `simcc_x [B, K, n W]` and `simcc_y [B, K, n H]`, values over the columns and rows of the input, n
bins per pixel) becomes heatmaps of a quarter of the input:

    heatmap(v, u) = s a_y(v) a_x(u),   a_x(u) = max(0, max of simcc_x over the bins of pixel u) / max simcc_x,

`a_y` likewise, and s = min(max simcc_x, max simcc_y) in 0..1, RTMPose's score of a keypoint. Pixel u of a heatmap
stands at input pixel 4 u (`heatmap = input / 4`), so its bins are those within two input pixels of that.

**Coordinates** (x, y) of regression networks, with a score s in 0..1 (1 where they say none) and perhaps sigmas, become

    heatmap(v, u) = s exp(-((u - x / 4)^2 / sigma_x^2 + (v - y / 4)^2 / sigma_y^2) / 2)

for x and y in input pixels; fractions are multiplied by the input's width and height first. sigma is the network's own,
in the unit of its coordinates and divided by 4 likewise, at least 1; 2 heatmap pixels where it says none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from posekd.codecs import coordinates, heatmaps
from posekd.codecs.coordinates import Coordinates

Codec = Literal["heatmaps", "simcc", "coordinates"]
Units = Literal["pixels", "fractions", "centred"]
SIGMA, LEAST_SIGMA = 2.0, 1.0  # heatmap pixels
_LARGEST_FRACTION = 2.0


@dataclass(frozen=True)
class Meaning:
    """What a network's outputs are taken for.

    Attributes:
        codec: `heatmaps` `[B, K, h, w]`, `simcc` or `coordinates`.
        num_keypoints: K.
        units: of coordinates: `pixels` of the input, `fractions` of its width and height, or `centred`, fractions
            counted from its middle (-0.5 to 0.5).
        said: the same in words, with the shapes.
    """

    codec: Codec
    num_keypoints: int
    units: Units | None
    said: str


def meaning_of(
    outputs: Sequence[Tensor],
    size: tuple[int, int],
    codec: str | None = None,
    units: str | None = None,
    num_keypoints: int | None = None,
    who: str = "the network",
) -> Meaning:
    """Tells by their shapes what outputs mean; by their values whether coordinates are pixels or fractions.

    Args:
        outputs: for one image or several, e.g. an empty one.
        size: `(H, W)` of the input in pixels.
        codec: what they are, where that is known.
        units: likewise of coordinates.
        num_keypoints: K, where it is known.
        who: the network, for messages.

    Raises:
        ValueError: they are something else than `codec` says, or nothing that is known here.
    """
    shapes = [tuple(output.shape) for output in outputs]
    if codec is not None and codec not in get_args(Codec):
        raise ValueError(f"teacher.codec {codec!r} is not known: {', '.join(get_args(Codec))}")
    if units is not None and units not in get_args(Units):
        raise ValueError(f"teacher.units {units!r} is not known: {', '.join(get_args(Units))}")
    fitting: dict[str, bool] = {
        "simcc": _is_simcc(shapes, size),
        "heatmaps": len(shapes) > 0 and len(shapes[0]) == 4,
        "coordinates": _take_apart(outputs, num_keypoints) is not None,
    }
    kind = codec or next((name for name, fits in fitting.items() if fits), None)
    if kind is None or not fitting[kind]:
        raise ValueError(
            f"{who} gives {shapes}, which are {f'not {kind}' if kind else 'nothing that is known'}: heatmaps are "
            f"[B, K, h, w], SimCC's vectors [B, K, {size[1]} n] and [B, K, {size[0]} n], coordinates [B, K, 2], "
            "[B, K, 3] (with scores), [B, K, 4] (with sigmas) or [B, 2 K]"
        )
    if kind != "coordinates":
        if units is not None:
            raise ValueError(f"teacher.units are of coordinates, and {who} gives {kind}")
        shown = ", ".join(map(str, shapes[: 2 if kind == "simcc" else 1]))
        return Meaning(kind, shapes[0][1], None, f"{who} gives {shown}: {kind}")  # type: ignore[arg-type]
    said = _take_apart(outputs, num_keypoints)
    assert said is not None
    low, high = float(said.coords.min()), float(said.coords.max())
    told = units or ("fractions" if max(-low, high) <= _LARGEST_FRACTION else "pixels")
    more = [name for name in ("scores", "sigmas") if getattr(said, name) is not None]
    how = "" if units else f" (values {low:.2f} to {high:.2f}; teacher.units says otherwise)"
    of = {"pixels": "in pixels", "fractions": "as fractions", "centred": "as fractions from the middle"}[told]
    text = f"{who} gives {', '.join(map(str, shapes))}: coordinates {of} of the input{how}"
    beside = f", with {' and '.join(more)}" if more else ""
    return Meaning("coordinates", said.coords.shape[1], told, text + beside)  # type: ignore[arg-type]


def as_heatmaps(outputs: Sequence[Tensor], meaning: Meaning, size: tuple[int, int]) -> Tensor:
    """Outputs as heatmaps float32 `[B, K, h, w]`: those of a quarter of the input, or the network's own.

    Args:
        outputs: of the network.
        meaning: what they are.
        size: `(H, W)` of the input.
    """
    if meaning.codec == "heatmaps":
        return outputs[0].float()
    if meaning.codec == "simcc":
        return from_simcc(outputs[0], outputs[1], size)
    said = _take_apart(outputs, meaning.num_keypoints)
    assert said is not None
    scale = said.coords.new_ones(2, dtype=torch.float32)
    if meaning.units != "pixels":
        scale = torch.stack([scale.new_full((), float(side)) for side in size[::-1]])
    shift = 0.5 if meaning.units == "centred" else 0.0
    points = (said.coords.float() + shift) * scale / heatmaps.STRIDE
    sigmas = None if said.sigmas is None else said.sigmas.float().abs() * scale / heatmaps.STRIDE
    return _drawn(points, said.scores, sigmas, size)


def from_coordinates(said: Coordinates, size: tuple[int, int]) -> Tensor:
    """Heatmaps of a regression network of posekd, whose sigmas are in heatmap pixels already, see the formula.

    Args:
        said: what it says.
        size: `(H, W)` of its input.
    """
    scale = torch.stack([said.coords.new_full((), float(side)) for side in size[::-1]]) / heatmaps.STRIDE
    return _drawn(said.coords.float() * scale, said.scores, said.sigmas, size)


class Drawn(nn.Module):
    """A regression network of posekd as a teacher of heatmaps.

    Args:
        model: it gives `Coordinates`.
    """

    output = heatmaps.NAME

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.paradigm, self.name, self.spec = model.paradigm, getattr(model, "name", "the teacher"), model.spec

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps `[B, K, H / 4, W / 4]`."""
        return from_coordinates(coordinates.read(self.model(images)), (images.shape[2], images.shape[3]))


def _drawn(points: Tensor, scores: Tensor | None, sigmas: Tensor | None, size: tuple[int, int]) -> Tensor:
    score = points.new_ones((*points.shape[:2], 1)) if scores is None else scores.float().clamp(0, 1)
    widths = points.new_full((1, 1, 2), SIGMA) if sigmas is None else sigmas.float().clamp_min(LEAST_SIGMA)
    quarter = size[0] // heatmaps.STRIDE, size[1] // heatmaps.STRIDE
    return heatmaps.gaussians(torch.cat((points, score), 2), widths, quarter)


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors of what a module returned: one, a list or tuple of them, or a mapping or a dataclass's fields."""
    if isinstance(output, Tensor):
        return [output]
    parts = list(output.values()) if hasattr(output, "values") else output
    if isinstance(parts, (list, tuple)):
        return [part for part in parts if isinstance(part, Tensor)]
    return []


def _take_apart(outputs: Sequence[Tensor], num_keypoints: int | None) -> Coordinates | None:
    """Coordinates, scores and sigmas in the network's own units; None for other outputs."""
    if not outputs or outputs[0].ndim not in (2, 3):
        return None
    first = outputs[0]
    if first.ndim == 2:
        numbers = 2 if num_keypoints is None else first.shape[1] / num_keypoints
        if numbers not in (2, 3, 4) or first.shape[1] % int(numbers):
            return None
        first = first.reshape(first.shape[0], -1, int(numbers))
    B, K, numbers = first.shape
    if numbers not in (2, 3, 4):
        return None
    scores = first[..., 2:] if numbers == 3 else None
    sigmas = first[..., 2:] if numbers == 4 else None
    for more in outputs[1:]:
        if tuple(more.shape) in ((B, K), (B, K, 1)):
            scores = more.reshape(B, K, 1)
        elif tuple(more.shape) == (B, K, 2):
            sigmas = more
    return Coordinates(first[..., :2], scores, sigmas)


def _is_simcc(shapes: Sequence[tuple[int, ...]], size: tuple[int, int]) -> bool:
    if len(shapes) < 2 or len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[0][1] != shapes[1][1]:
        return False
    return all(shape[2] >= side and shape[2] % side == 0 for shape, side in zip(shapes, size[::-1], strict=False))


def from_simcc(columns: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps from SimCC's vectors, see the module's formula.

    Args:
        columns: `[B, K, n W]`.
        rows: `[B, K, n H]`.
        size: `(H, W)` of the input in pixels, multiples of 4.

    Returns:
        float32 `[B, K, H / 4, W / 4]` in 0..1.
    """
    (along_y, high_y), (along_x, high_x) = _axis(rows, size[0]), _axis(columns, size[1])
    score = torch.minimum(high_x, high_y).clamp(0, 1)
    return score[..., None] * along_y[..., :, None] * along_x[..., None, :]


def _axis(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """`a` and the largest value, `[B, K, side / 4]` and `[B, K, 1]`."""
    bins = values.float().clamp_min(0)
    window = bins.shape[2] // side * heatmaps.STRIDE
    # pixel u takes the bins 4 u n - 2 n up to 4 u n + 2 n
    padded = nn.functional.pad(bins, (window // 2, 0))
    pooled = nn.functional.max_pool1d(padded, window, window)[..., : side // heatmaps.STRIDE]
    highest = pooled.amax(2, keepdim=True)
    return pooled / highest.clamp_min(1e-6), highest
