"""Augmentation as a few numbers per crop or image, drawn in a loader's worker; pixels move on the device (`inputs`).

The draws of crops follow deep-high-resolution-net, lib/dataset/JointsDataset.py, those of whole images
HigherHRNet-Human-Pose-Estimation, lib/dataset/transforms/transforms.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from posekd.data.photometric import Photometric

HALF_BODY_PADDING = 1.5  # half_body_transform: scale * 1.5
SCALE_UNIT = 200.0  # HigherHRNet's translation is in units of a crop of 200 pixels


@dataclass(frozen=True)
class CropAugmentation:
    """How training crops vary.

    Attributes:
        flip: probability of a mirror image.
        rotation: in degrees; the standard deviation of a normal draw, clipped at twice that, or the bounds of a
            uniform one.
        scale: of the zoom factor about 1; the standard deviation, clipped at one, or the bounds.
        distribution: of rotation and scale: `normal` as in HRNet's code, or `uniform` within the given ranges (FPD's
            paper: scale 0.75 to 1.25, rotation +-30 degrees).
        rotation_probability: share of crops that are rotated at all.
        half_body: probability of cropping to the upper or lower body, for persons with many keypoints.
        half_body_min_joints: only persons with more labelled keypoints than this are cropped to half a body.
        vertical_flip: probability of a mirror image about the horizontal axis, upside down.
        photometric: how crops vary in look.
    """

    flip: float = 0.5
    rotation: float = 40.0
    scale: float = 0.3
    rotation_probability: float = 0.6
    half_body: float = 0.0
    half_body_min_joints: int = 8
    distribution: Literal["normal", "uniform"] = "normal"
    vertical_flip: float = 0.0
    photometric: Photometric = field(default_factory=Photometric)

    def __post_init__(self) -> None:
        if self.distribution not in ("normal", "uniform"):
            raise ValueError(f"distribution must be normal or uniform, got {self.distribution!r}")
        for name in ("flip", "rotation_probability", "half_body", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in 0..1, got {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must be in [0, 1): zooms span 1 - scale..1 + scale, got {self.scale}")
        if self.rotation < 0:
            raise ValueError(f"rotation is a spread in degrees and cannot be negative, got {self.rotation}")

    @property
    def moves(self) -> bool:
        """Whether any crop is of another place than the box's; looks aside."""
        rotates = self.rotation > 0 and self.rotation_probability > 0
        return rotates or self.flip > 0 or self.vertical_flip > 0 or self.scale > 0 or self.half_body > 0


class Draw(NamedTuple):
    """One person's augmentation: crop (pixels), rotation (degrees), zoom (factor on the scale), mirror."""

    center: np.ndarray
    scale: np.ndarray
    rotation: float = 0.0
    zoom: float = 1.0
    flip: bool = False


def draw(
    augmentation: CropAugmentation,
    rng: np.random.Generator,
    center: np.ndarray,
    scale: np.ndarray,
    keypoints: np.ndarray,
    size: tuple[int, int],
    upper_body: Sequence[int],
) -> Draw:
    """Draws one person's augmentation.

    Args:
        augmentation: the ranges.
        rng: consumed in a fixed order.
        center: `[2]` (x, y) of the crop from the box.
        scale: `[2]` (width, height) of it.
        keypoints: `[K, 3]` in image pixels.
        size: `(height, width)` of the crop.
        upper_body: keypoint indices of the upper half.
    """
    a = augmentation
    labelled = keypoints[:, 2] > 0
    if a.half_body > 0 and labelled.sum() > a.half_body_min_joints and rng.random() < a.half_body:
        # The official code compares a normal draw with 0.5: the upper half is chosen in 69 % of cases.
        half = half_body(keypoints, upper_body, size, upper=rng.standard_normal() < 0.5)
        center, scale = half or (center, scale)
    if a.distribution == "uniform":
        zoom, angle = float(rng.uniform(1 - a.scale, 1 + a.scale)), float(rng.uniform(-a.rotation, a.rotation))
    else:
        zoom = float(np.clip(1 + a.scale * rng.standard_normal(), 1 - a.scale, 1 + a.scale))
        angle = float(np.clip(a.rotation * rng.standard_normal(), -2 * a.rotation, 2 * a.rotation))
    rotation = angle if rng.random() < a.rotation_probability else 0.0
    flip, rotation = upside_down(a.vertical_flip, rng, bool(rng.random() < a.flip), rotation)
    return Draw(center, scale, rotation, zoom, flip)


def upside_down(probability: float, rng: np.random.Generator, flip: bool, rotation: float) -> tuple[bool, float]:
    """Draws a mirror about the horizontal axis: the other mirror and half a turn. Both mirrors are half a turn alone.

    One mirror exchanges left and right, two do not, so what follows from `flip` stays right. Nothing is drawn where
    the probability is 0, so that older runs stay the same runs.

    Returns:
        the mirror and the rotation (degrees) with it.
    """
    if probability > 0 and rng.random() < probability:
        return not flip, rotation + 180.0
    return flip, rotation


def half_body(
    keypoints: np.ndarray, upper_body: Sequence[int], size: tuple[int, int], *, upper: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Crop around the labelled keypoints of one half of a body.

    Returns:
        center `[2]` and scale `[2]`, float32; None if fewer than two keypoints are there.
    """
    labelled = keypoints[:, 2] > 0
    is_upper = np.isin(np.arange(len(keypoints)), upper_body)
    upper_joints, lower_joints = keypoints[labelled & is_upper, :2], keypoints[labelled & ~is_upper, :2]
    if upper and len(upper_joints) > 2:
        chosen = upper_joints
    else:
        chosen = lower_joints if len(lower_joints) > 2 else upper_joints
    if len(chosen) < 2 or not np.ptp(chosen, axis=0).any():
        return None
    w, h = np.ptp(chosen, axis=0)
    aspect = size[1] / size[0]
    scale = np.array([max(w, h * aspect), max(h, w / aspect)]) * HALF_BODY_PADDING
    return chosen.mean(0).astype(np.float32), scale.astype(np.float32)


@dataclass(frozen=True)
class ImageAugmentation:
    """How training images vary; the defaults are HigherHRNet's.

    Attributes:
        flip: probability of a mirror image.
        rotation: largest angle in degrees, drawn evenly on both sides.
        scale: smallest and largest side of the crop in units of the image's shorter side, drawn evenly: below 1 the
            image is enlarged.
        translation: farthest shift of the crop in x and in y, in pixels of a crop of 200.
        vertical_flip: probability of a mirror image about the horizontal axis, upside down.
        photometric: how images vary in look.
    """

    flip: float = 0.5
    rotation: float = 30.0
    scale: tuple[float, float] = (0.75, 1.5)
    translation: float = 40.0
    vertical_flip: float = 0.0
    photometric: Photometric = field(default_factory=Photometric)

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, in 0..1, got {getattr(self, name)}")
        if self.rotation < 0 or self.translation < 0:
            raise ValueError(f"rotation and translation cannot be negative, got {self.rotation}, {self.translation}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is a smallest and a largest factor, both positive, got {self.scale}")


@dataclass(frozen=True)
class ImageDraw:
    """One image's augmentation: crop (pixels of the image), rotation (degrees), mirror."""

    center: tuple[float, float]
    side: float
    rotation: float
    flip: bool


def draw_image(augmentation: ImageAugmentation, rng: np.random.Generator, height: int, width: int) -> ImageDraw:
    """Draws one image's augmentation; `rng` is consumed in a fixed order."""
    a = augmentation
    side = min(height, width) * (a.scale[0] + (a.scale[1] - a.scale[0]) * rng.random())
    rotation = a.rotation * (2 * rng.random() - 1)
    reach = int(a.translation * side / SCALE_UNIT)  # whole pixels, as in the official code
    dx, dy = rng.integers(-reach, reach, 2) if reach else (0, 0)
    flip, rotation = upside_down(a.vertical_flip, rng, bool(rng.random() < a.flip), rotation)
    return ImageDraw((width / 2 + float(dx), height / 2 + float(dy)), side, rotation, flip)
