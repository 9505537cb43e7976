"""Synthetic people, part 2: figures painted limb by limb, far parts first.

The canvas has four channels: red, green, blue and a label, so that one fill paints colour and ownership
together. Label 0 is background, 255 an occluder, and person p owns `1 + 16 p .. 16 + 16 p`, one per part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from posekd.data.synthetic import body
from posekd.data.synthetic.body import Figures

PARTS_A_PERSON = 16
OCCLUDER = 255
MAX_PEOPLE = (OCCLUDER - 1) // PARTS_A_PERSON
SPLITS = {"train": 0, "val": 1}  # what a split adds to the seed of everything drawn

_SHIFT = 4  # fractional bits of polygon coordinates
(
    TORSO, PELVIS, L_UPPER_ARM, R_UPPER_ARM, L_FOREARM, R_FOREARM, L_THIGH, R_THIGH, L_SHANK, R_SHANK,
    L_FOOT, R_FOOT, NECK, SKULL,
) = range(14)  # fmt: skip

# Limbs: part, from point, to point, radius there, radius here (fractions of body height).
_LIMBS = (
    (NECK, body.NECK, body.HEAD, 0.031, 0.030),
    (L_UPPER_ARM, body.L_SHOULDER, body.L_ELBOW, 0.036, 0.028),
    (R_UPPER_ARM, body.R_SHOULDER, body.R_ELBOW, 0.036, 0.028),
    (L_FOREARM, body.L_ELBOW, body.L_WRIST, 0.028, 0.020),
    (R_FOREARM, body.R_ELBOW, body.R_WRIST, 0.028, 0.020),
    (L_FOREARM, body.L_WRIST, body.L_HAND, 0.019, 0.024),
    (R_FOREARM, body.R_WRIST, body.R_HAND, 0.019, 0.024),
    (L_THIGH, body.L_HIP, body.L_KNEE, 0.056, 0.038),
    (R_THIGH, body.R_HIP, body.R_KNEE, 0.056, 0.038),
    (L_SHANK, body.L_KNEE, body.L_ANKLE, 0.038, 0.024),
    (R_SHANK, body.R_KNEE, body.R_ANKLE, 0.038, 0.024),
    (L_FOOT, body.L_ANKLE, body.L_TOE, 0.028, 0.020),
    (R_FOOT, body.R_ANKLE, body.R_TOE, 0.028, 0.020),
)
_LIMB_PART = [limb[0] for limb in _LIMBS]
_FROM, _TO = [limb[1] for limb in _LIMBS], [limb[2] for limb in _LIMBS]
_RADII = np.array([limb[3:] for limb in _LIMBS])
_LIMB_BIAS = np.array([-0.03] + [0.02] * 6 + [-0.02] * 6)  # arms before the torso, legs under the trousers' top

# Circles whose convex hull is the torso and the pelvis.
_TORSO_POINTS = [body.L_SHOULDER, body.R_SHOULDER, body.CHEST, body.BELLY, body.L_HIP, body.R_HIP]
_TORSO_RADII = np.array([0.038, 0.038, 0.068, 0.062, 0.045, 0.045])
_PELVIS_POINTS = [body.L_HIP, body.R_HIP]
_PELVIS_RADII = np.array([0.058, 0.058])

_ARC = np.linspace(-np.pi / 2, np.pi / 2, 6)
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 14, endpoint=False)) for f in (np.cos, np.sin)], -1)

_SKIN = np.array(
    [(244, 208, 177), (231, 180, 143), (210, 158, 124), (180, 128, 92), (140, 92, 62), (96, 64, 46)],
    np.float64,
)
_HAIR = np.array([(28, 22, 20), (60, 40, 28), (110, 76, 44), (190, 150, 90), (150, 148, 146), (120, 50, 30)], float)


@dataclass
class Wardrobe:
    """Colours of P people, uint8-ranged floats: `parts` `[P, 14, 3]`, `hair` and `skin` `[P, 3]`."""

    parts: np.ndarray
    hair: np.ndarray
    skin: np.ndarray
    stripes: np.ndarray


def draw_wardrobe(rng: np.random.Generator, count: int, difficulty: float) -> Wardrobe:
    """Clothes: most people are dressed alike left and right, the others wear any colour anywhere."""
    skin = _SKIN[rng.integers(0, len(_SKIN), count)] + rng.normal(0, 8, (count, 3))
    hair = _HAIR[rng.integers(0, len(_HAIR), count)] + rng.normal(0, 8, (count, 3))
    # Muted cloth: a grey level plus some colour.
    cloth = rng.uniform(25, 225, (count, 14, 1)) + rng.normal(0, 38, (count, 14, 3))
    matched = rng.random(count) >= 0.1 + 0.5 * difficulty
    for left in (L_UPPER_ARM, L_FOREARM, L_THIGH, L_SHANK, L_FOOT):
        cloth[matched, left + 1] = cloth[matched, left]
    cloth[matched, L_UPPER_ARM] = cloth[matched, R_UPPER_ARM] = cloth[matched, TORSO]
    cloth[matched, L_THIGH] = cloth[matched, R_THIGH] = cloth[matched, PELVIS]
    bare = rng.random((count, 4))
    for left, chance, column in (
        (L_FOREARM, 0.6, 0),
        (L_UPPER_ARM, 0.2, 1),
        (L_SHANK, 0.3, 2),
        (L_THIGH, 0.08, 3),
    ):
        cloth[bare[:, column] < chance, left : left + 2] = skin[bare[:, column] < chance, None]
    long_sleeve = matched & (bare[:, 0] >= 0.6)
    cloth[long_sleeve, L_FOREARM] = cloth[long_sleeve, R_FOREARM] = cloth[long_sleeve, TORSO]
    trousers = matched & (bare[:, 2] >= 0.3)
    cloth[trousers, L_SHANK] = cloth[trousers, R_SHANK] = cloth[trousers, PELVIS]
    cloth[:, NECK] = skin * 0.88
    cloth[:, SKULL] = skin
    return Wardrobe(cloth.clip(8, 250), hair.clip(8, 250), skin.clip(8, 250), rng.random(count) < 0.35)


def _capsules(figures: Figures, shrink: float, offset: np.ndarray) -> np.ndarray:
    """Outlines of all limbs, int32 `[P, L, 12, 2]` in fixed point."""
    start, end = figures.points[:, _FROM, :2], figures.points[:, _TO, :2]
    radii = _RADII * shrink * (figures.heights * figures.widths)[:, None, None]
    along = end - start
    angle = np.arctan2(along[..., 1], along[..., 0])[..., None] + _ARC
    arc = np.stack((np.cos(angle), np.sin(angle)), -1)
    moved = offset * radii.mean(-1)[..., None]
    tip = (end + moved)[:, :, None] + radii[..., 1, None, None] * arc
    root = (start + moved)[:, :, None] - radii[..., 0, None, None] * arc
    return np.rint(np.concatenate((tip, root), 2) * 2**_SHIFT).astype(np.int32)


def _hull(points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Convex hull of circles, int32 `[n, 1, 2]` in fixed point."""
    rings = points[:, None] + radii[:, None, None] * _CIRCLE
    return cv2.convexHull(np.rint(rings.reshape(-1, 2) * 2**_SHIFT).astype(np.int32))


def paint_figures(
    canvas: np.ndarray, figures: Figures, wardrobe: Wardrobe, rng: np.random.Generator, light: np.ndarray
) -> None:
    """Paints people onto the canvas in their order.

    Args:
        canvas: uint8 `[H, W, 4]`, changed in place.
        figures: P people.
        wardrobe: their clothes.
        rng: for stripes.
        light: `[2]`, unit vector in the image towards the light.
    """
    outlines = _capsules(figures, 1.0, np.zeros(2))
    lit = _capsules(figures, 0.6, 0.32 * light)
    nearness = figures.points[..., 2] / figures.heights[:, None]
    depth = np.concatenate(
        (
            0.5 * (nearness[:, _FROM] + nearness[:, _TO]) + _LIMB_BIAS,
            nearness[:, [body.CHEST]] * 0.5 + nearness[:, [body.BELLY]] * 0.5,
            nearness[:, _PELVIS_POINTS].mean(1, keepdims=True) + 0.005,
            nearness[:, [body.HEAD]] + 0.01,
        ),
        1,
    )
    order = np.argsort(depth, 1)
    L = len(_LIMBS)
    gains = rng.uniform(1.06, 1.28, len(figures))
    for p in range(len(figures)):
        first = 1 + PARTS_A_PERSON * p
        colours = np.concatenate((wardrobe.parts[p], np.arange(first, first + 14)[:, None]), 1)
        lighter = np.minimum(colours * (gains[p], gains[p], gains[p], 1), 255)
        dull, bright = colours.tolist(), lighter.tolist()
        for item in order[p].tolist():
            if item < L:
                part = _LIMB_PART[item]
                cv2.fillConvexPoly(canvas, outlines[p, item], dull[part], cv2.LINE_8, _SHIFT)
                cv2.fillConvexPoly(canvas, lit[p, item], bright[part], cv2.LINE_8, _SHIFT)
            elif item == L:
                _paint_trunk(canvas, figures, p, dull[TORSO], bright[TORSO], light, wardrobe.stripes[p], rng)
            elif item == L + 1:
                unit = figures.heights[p] * figures.widths[p]
                hull = _hull(figures.points[p, _PELVIS_POINTS, :2], _PELVIS_RADII * unit)
                cv2.fillConvexPoly(canvas, hull, dull[PELVIS], cv2.LINE_8, _SHIFT)
            else:
                _paint_head(canvas, figures, p, wardrobe, first + SKULL)


def _paint_trunk(
    canvas: np.ndarray,
    figures: Figures,
    p: int,
    dull: list[float],
    bright: list[float],
    light: np.ndarray,
    striped: bool,
    rng: np.random.Generator,
) -> None:
    unit = figures.heights[p] * figures.widths[p]
    points = figures.points[p, _TORSO_POINTS, :2]
    cv2.fillConvexPoly(canvas, _hull(points, _TORSO_RADII * unit), dull, cv2.LINE_8, _SHIFT)
    inner = points * 0.6 + points.mean(0) * 0.4 + light * 0.02 * unit
    cv2.fillConvexPoly(canvas, _hull(inner, 0.6 * _TORSO_RADII * unit), bright, cv2.LINE_8, _SHIFT)
    if striped:
        colour = [*rng.uniform(20, 240, 3).tolist(), dull[3]]
        left, right = points[[0, 4]], points[[1, 5]]
        for t in np.arange(0.15, 1.0, rng.uniform(0.15, 0.4)):
            ends = np.stack((left[0] + t * (left[1] - left[0]), right[0] + t * (right[1] - right[0])))
            ends = np.rint(ends).astype(int).tolist()
            cv2.line(canvas, ends[0], ends[1], colour, max(1, int(0.018 * unit)))


def _paint_head(canvas: np.ndarray, figures: Figures, p: int, wardrobe: Wardrobe, label: int) -> None:
    """Hair all around, the face where the head looks, features on the near side only."""
    unit = figures.heights[p] * body.HEAD_RADIUS
    points, gaze = figures.points[p], figures.face[p]
    head = points[body.HEAD, :2]
    up = points[body.CROWN, :2] - head
    up = up / (np.linalg.norm(up) + 1e-6)
    tilt = float(np.degrees(np.arctan2(up[0], -up[1])))
    skin = [*wardrobe.skin[p].tolist(), label]
    _ellipse(canvas, head + up * 0.12 * unit, (1.06 * unit, 1.25 * unit), tilt, [*wardrobe.hair[p].tolist(), label])
    for ear in (body.L_EAR, body.R_EAR):
        if points[ear, 2] > points[body.HEAD, 2] - 0.35 * unit:
            _ellipse(canvas, points[ear, :2], (0.2 * unit, 0.28 * unit), tilt, [*(wardrobe.skin[p] * 0.9), label])
    if gaze[2] < -0.45:
        return
    # The face slides towards the gaze, and narrows as it turns away.
    center = head + gaze[:2] * 0.42 * unit - up * 0.12 * unit
    narrow = 0.55 + 0.38 * max(0.0, float(gaze[2]))
    _ellipse(canvas, center, (narrow * unit, 1.04 * unit), tilt, skin)
    for eye in (body.L_EYE, body.R_EYE):
        if points[eye, 2] > points[body.HEAD, 2] + 0.15 * unit:
            _ellipse(canvas, points[eye, :2], (0.2 * unit, 0.13 * unit), tilt, [240, 240, 236, label])
            _ellipse(canvas, points[eye, :2], (0.11 * unit, 0.12 * unit), tilt, [30, 26, 30, label])
    nose, mouth = points[body.NOSE], points[body.MOUTH]
    if nose[2] > points[body.HEAD, 2] - 0.1 * unit:
        _ellipse(canvas, nose[:2], (0.13 * unit, 0.2 * unit), tilt, [*(wardrobe.skin[p] * 0.72), label])
    if mouth[2] > points[body.HEAD, 2]:
        _ellipse(canvas, mouth[:2], (0.3 * unit * narrow, 0.08 * unit), tilt, [150, 52, 52, label])


def _ellipse(
    canvas: np.ndarray, center: np.ndarray, axes: tuple[float, float], tilt: float, colour: list[float]
) -> None:
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    ring = _CIRCLE * axes
    x = center[0] + ring[:, 0] * cos - ring[:, 1] * sin
    y = center[1] + ring[:, 0] * sin + ring[:, 1] * cos
    outline = np.rint(np.stack((x, y), -1) * 2**_SHIFT).astype(np.int32)
    cv2.fillConvexPoly(canvas, outline, colour, cv2.LINE_8, _SHIFT)


def check_drawn(split: str, seed: int, size: tuple[int, int], people: tuple[int, int], difficulty: float) -> None:
    """Refuses settings that nothing can be drawn by, whether images or videos.

    Raises:
        ValueError: with the setting, its value and what it may be.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if min(size) < 32:
        raise ValueError(f"size must be at least 32 x 32 pixels, got {tuple(size)}")
    if not 1 <= people[0] <= people[1] <= MAX_PEOPLE:
        raise ValueError(f"people must be two numbers, low <= high, in 1..{MAX_PEOPLE}, got {people}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be in 0..1, got {difficulty}")
