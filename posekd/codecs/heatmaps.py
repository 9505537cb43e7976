"""Heatmaps: the output of HRNet, SimpleBaseline, ELPN, Hourglass and PyraNet for a crop.

The rules of the flip test and of decoding are those of deep-high-resolution-net (`lib/core/function.py`,
`lib/core/inference.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from posekd import geometry, ops
from posekd.ops.reference import decode_heatmaps as definition

NAME = "heatmaps"
STRIDE = 4  # input pixels per heatmap pixel, in all networks here
MIDPOINT_SIGMA = 2.0  # heatmap pixels, as labels are drawn for most networks
DERIVES = True  # whether `bridged` draws midpoints


class TokenHeatmaps(NamedTuple):
    """What a network of tokens (TokenPose) says of the K keypoints of B crops.

    Attributes:
        heatmaps: `[B, K, H/4, W/4]`.
        keypoint_tokens: `[B, K, D]` after the last block, before any norm (TokenPose-L: of all three transformers).
        visual_tokens: `[B, N, D]`, the same of the patches, row by row.
    """

    heatmaps: Tensor
    keypoint_tokens: Tensor
    visual_tokens: Tensor


class HeatmapSettings(Protocol):
    """The settings of inference that decoding uses, see `paradigms.top_down.TopDownInference`."""

    @property
    def shift_heatmaps(self) -> bool: ...  # noqa: D102

    @property
    def decode(self) -> str: ...  # noqa: D102

    @property
    def blur_kernel(self) -> int: ...  # noqa: D102


def read(output: Any, num_keypoints: int | None = None) -> list[Tensor]:
    """The heatmaps of each stage of a network; a network of one stage may return its tensor without a list.

    Args:
        output: what the network returned; of `TokenHeatmaps` their heatmaps.
        num_keypoints: K; not checked if None.

    Returns:
        `[B, K, h, w]` of each stage, the final one last.

    Raises:
        ValueError: another kind of output, or another number of keypoints.
    """
    output = output.heatmaps if isinstance(output, TokenHeatmaps) else output
    stages = list(output) if isinstance(output, (list, tuple)) else [output]
    for stage in stages or [output]:
        if not isinstance(stage, Tensor) or stage.ndim != 4:
            found = tuple(stage.shape) if isinstance(stage, Tensor) else type(stage).__name__
            raise ValueError(
                f"a top-down network gives heatmaps [B, K, h, w], one tensor per stage or one; this one gives {found}"
            )
        if num_keypoints is not None and stage.shape[1] != num_keypoints:
            raise ValueError(f"the network has {stage.shape[1]} heatmaps, the dataset {num_keypoints} keypoints")
    return stages


def reorder(output: Any, order: Tensor) -> list[Tensor] | TokenHeatmaps:
    """The output of a network whose keypoints stand in another order: keypoint k is its `order[k]`."""
    if isinstance(output, TokenHeatmaps):
        return TokenHeatmaps(output.heatmaps[:, order], output.keypoint_tokens[:, order], output.visual_tokens)
    return [stage[:, order] for stage in read(output)]


def gaussians(points: Tensor, sigmas: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps of points: `score exp(-((u - x)^2 / sigma_x^2 + (v - y)^2 / sigma_y^2) / 2)` at column u and row v.

    Args:
        points: `[B, K, 3]` (x, y, score) in pixels of the maps.
        sigmas: `[B, K, 2]`, or what broadcasts to it, of x and y, in pixels of the maps.
        size: `(height, width)` of the maps.

    Returns:
        float32 `[B, K, height, width]`.
    """
    x, y, score = points.float().unbind(2)
    sigma_x, sigma_y = sigmas.float().expand(*points.shape[:2], 2).unbind(2)
    u, v = (torch.arange(side, device=points.device, dtype=torch.float32) for side in (size[1], size[0]))
    along_x = torch.exp(-0.5 * ((u - x[..., None]) / sigma_x[..., None]) ** 2)
    along_y = torch.exp(-0.5 * ((v - y[..., None]) / sigma_y[..., None]) ** 2)
    return score[..., None, None] * along_y[..., :, None] * along_x[..., None, :]


def bridged(output: Any, order: Tensor, covered: Tensor, midway: Tensor, couples: Tensor) -> list[Tensor]:
    """The heatmaps of another set of keypoints, of each stage.

    A point midway between two is drawn: a Gaussian of `MIDPOINT_SIGMA` at the midpoint of their two peaks, as high as
    the lower one. That needs maps of one person.

    Args:
        output: what the network returned.
        order: int64 `[K]`, the network's keypoint of each; any where there is none.
        covered: bool `[K]`; where it is false the maps are 0.
        midway: int64 `[D]`, which of the K are midpoints.
        couples: int64 `[2, D]`, the network's keypoints that they lie between.
    """
    result = []
    for stage in read(output):
        maps = torch.where(covered[:, None, None], stage[:, order], 0)
        if midway.numel():
            first, second = (ops.decode_heatmaps(stage[:, couple].float(), "quarter") for couple in couples)
            score = torch.minimum(first[..., 2:], second[..., 2:]).clamp_min(0)
            points = torch.cat(((first[..., :2] + second[..., :2]) / 2, score), 2)
            sigmas = points.new_full((1, 1, 2), MIDPOINT_SIGMA)
            drawn = gaussians(points, sigmas, (stage.shape[-2], stage.shape[-1])).to(stage.dtype)
            maps = maps.index_copy(1, midway, drawn)
        result.append(maps)
    return result


def final(output: Any, num_keypoints: int) -> Tensor:
    """The heatmaps that inference uses: those of the last stage, float32 `[B, K, h, w]`.

    Raises:
        ValueError: see `read`.
    """
    return read(output, num_keypoints)[-1].float()


def unmirror(
    heatmaps: Tensor, order: Tensor | Sequence[int], size: tuple[int, int], settings: HeatmapSettings
) -> Tensor:
    """Heatmaps of mirrored crops as those of the crops: mirrored back, left and right keypoints exchanged.

    With `shift_heatmaps` they are also moved one column to the right, column 0 staying as it is. (Input column x
    becomes W - 1 - x, heatmap column x / 4 should become W / 4 - x / 4 - 1 / 4, but mirroring the map gives
    W / 4 - x / 4 - 1: 3/4 of a column less.)

    Args:
        heatmaps: `[B, K, h, w]` of the mirrored crops.
        order: K keypoint indices that a mirror exchanges.
        size: `(height, width)` of the crops; not needed here.
        settings: `shift_heatmaps`.
    """
    heatmaps = heatmaps.flip(-1)[:, torch.as_tensor(order, device=heatmaps.device)]
    if settings.shift_heatmaps:
        heatmaps = torch.cat((heatmaps[..., :1], heatmaps[..., :-1]), dim=-1)
    return heatmaps


def average(heatmaps: Tensor, mirrored: Tensor) -> Tensor:
    """The mean of both views of a flip test."""
    return (heatmaps + mirrored) * 0.5


def decode(heatmaps: Tensor, matrices: Tensor, size: tuple[int, int], settings: HeatmapSettings) -> Tensor:
    """Keypoints from the heatmaps of crops.

    Args:
        heatmaps: `[B, K, h, w]`.
        matrices: `[B, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.
        settings: `decode` and `blur_kernel`, see `ops.decode_heatmaps`.

    Returns:
        float32 `[B, K, 3]` (x, y, score) in image pixels; the score is the heatmap's maximum.

    Raises:
        ValueError: the aspect ratio of the heatmaps is not that of the crops.
    """
    to_image = _to_image(heatmaps, matrices, size)
    return ops.decode_heatmaps(heatmaps, settings.decode, matrices=to_image, blur_kernel=settings.blur_kernel)


def decode_plain(heatmaps: Tensor, matrices: Tensor, size: tuple[int, int], settings: HeatmapSettings) -> Tensor:
    """`decode` in plain PyTorch, for exporters."""
    to_image = _to_image(heatmaps, matrices, size)
    return definition.decode_heatmaps(heatmaps, settings.decode, to_image, settings.blur_kernel)


def _to_image(heatmaps: Tensor, matrices: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmap pixel to image pixel."""
    (height, width), (h, w) = size, heatmaps.shape[-2:]
    if height * w != width * h:
        raise ValueError(f"heatmaps of {h}x{w} do not cover crops of {height}x{width} evenly")
    return geometry.heatmap_matrices(matrices, width / w)
