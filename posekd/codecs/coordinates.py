"""Coordinates: the output of DistilPose and DeepPose for a crop, found by regression.

The rules are DistilPose's (`lib/models/head.py`, `lib/core`): a coordinate is a fraction of the crop's width or height,
a keypoint's confidence is what the network says of it, without any activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from posekd import geometry

NAME = "coordinates"


class Coordinates(NamedTuple):
    """What a regression network says of the K keypoints of B crops.

    Attributes:
        coords: `[B, K, 2]` (x, y), fractions of the crop's width and height.
        scores: `[B, K, 1]`, confidences without activation (below 0 and above 1 too); None if it says none.
        sigmas: `[B, K, 2]` (sigma_x, sigma_y), above 0, in pixels of the teacher's heatmap; None if it says none.
        keypoint_tokens: `[B, K, D]` after the last block, before any norm; None without a transformer.
        visual_tokens: `[B, N, D]`, the same of the patches, row by row; None without a transformer.
    """

    coords: Tensor
    scores: Tensor | None = None
    sigmas: Tensor | None = None
    keypoint_tokens: Tensor | None = None
    visual_tokens: Tensor | None = None


class CoordinateSettings(Protocol):
    """The settings of inference that decoding uses, see `paradigms.top_down.TopDownInference`."""

    @property
    def released_flip(self) -> bool: ...  # noqa: D102


def read(output: Any, num_keypoints: int | None = None) -> Coordinates:
    """The network's output, checked.

    Args:
        output: what the network returned.
        num_keypoints: K; not checked if None.

    Raises:
        ValueError: another kind of output, or another number of keypoints.
    """
    if not isinstance(output, Coordinates) or output.coords.ndim != 3 or output.coords.shape[2] != 2:
        found = tuple(output.coords.shape) if isinstance(output, Coordinates) else type(output).__name__
        raise ValueError(f"a regression network gives Coordinates, with coords [B, K, 2]; this one gives {found}")
    if num_keypoints is not None and output.coords.shape[1] != num_keypoints:
        raise ValueError(f"the network has {output.coords.shape[1]} coordinates, the dataset {num_keypoints} keypoints")
    return output


def reorder(output: Any, order: Tensor) -> Coordinates:
    """The output of a network whose keypoints stand in another order: keypoint k is its `order[k]`."""
    coords, scores, sigmas, keypoint_tokens, visual_tokens = read(output)
    scores, sigmas, keypoint_tokens = (
        None if part is None else part[:, order] for part in (scores, sigmas, keypoint_tokens)
    )
    return Coordinates(coords[:, order], scores, sigmas, keypoint_tokens, visual_tokens)


def final(output: Any, num_keypoints: int) -> Tensor:
    """What inference uses: float32 `[B, K, 3]` (x, y as fractions, score); score 1 from a network that says none.

    Raises:
        ValueError: see `read`.
    """
    said = read(output, num_keypoints)
    scores = torch.ones_like(said.coords[..., :1]) if said.scores is None else said.scores
    return torch.cat((said.coords, scores), 2).float()


def unmirror(
    points: Tensor, order: Tensor | Sequence[int], size: tuple[int, int], settings: CoordinateSettings
) -> Tensor:
    """Coordinates in mirrored crops as those in the crops: mirrored back, left and right keypoints exchanged.

    Column x of the crop is column W - 1 - x of the mirrored one, so a fraction f becomes 1 - 1 / W - f. The released
    code takes 1 - f, which is a pixel too far, and does not exchange the scores of left and right: `released_flip`.

    Args:
        points: `[B, K, 3]` of the mirrored crops.
        order: K keypoint indices that a mirror exchanges.
        size: `(height, width)` of the crops.
        settings: `released_flip`.
    """
    exchanged = points[:, torch.as_tensor(order, device=points.device)]
    x, y, score = exchanged.unbind(2)
    if settings.released_flip:
        return torch.stack((1 - x, y, points[..., 2]), 2)
    return torch.stack((1 - 1 / size[1] - x, y, score), 2)


def average(points: Tensor, mirrored: Tensor) -> Tensor:
    """The mean of both views of a flip test."""
    return (points + mirrored) * 0.5


def decode(points: Tensor, matrices: Tensor, size: tuple[int, int], settings: CoordinateSettings) -> Tensor:
    """Keypoints in image pixels.

    Args:
        points: `[B, K, 3]`, see `final`.
        matrices: `[B, 2, 3]`, crop pixel to image pixel.
        size: `(height, width)` of the crops.
        settings: none is used.

    Returns:
        float32 `[B, K, 3]` (x, y, score) in image pixels.
    """
    x, y, score = points.unbind(2)
    return geometry.transform_keypoints(torch.stack((x * size[1], y * size[0], score), 2), matrices)


def decode_plain(points: Tensor, matrices: Tensor, size: tuple[int, int], settings: CoordinateSettings) -> Tensor:
    """`decode` for exporters, which is plain PyTorch already; in float32."""
    x, y, score = points.unbind(2)
    in_crop = torch.stack((x * size[1], y * size[0], torch.ones_like(x)), 2)
    return torch.cat((in_crop @ matrices.transpose(1, 2), score[..., None]), 2)
