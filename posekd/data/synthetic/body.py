"""Synthetic people, part 1: articulated bodies in three dimensions, posed and projected.

A body stands in its own frame: x to the person's left, y up, z the way it faces; lengths are fractions of
body height (proportions after Winter, Biomechanics and Motor Control of Human Movement, fig. 4.1, rounded).
The camera sees x to the right, y down and keeps z as nearness, so that a person who faces the camera has
the left hand on the right of the image, and one seen from behind on the left: sides follow from anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# COCO's 17 keypoints, then points that only painting needs.
NOSE, L_EYE, R_EYE, L_EAR, R_EAR, L_SHOULDER, R_SHOULDER, L_ELBOW, R_ELBOW, L_WRIST, R_WRIST = range(11)
L_HIP, R_HIP, L_KNEE, R_KNEE, L_ANKLE, R_ANKLE = range(11, 17)
HEAD, NECK, CHEST, BELLY, L_HAND, R_HAND, L_TOE, R_TOE, MOUTH, CROWN = range(17, 27)
NUM_JOINTS, NUM_POINTS = 17, 27

SPINE, HIP_HALF, SHOULDER_HALF = 0.29, 0.075, 0.12
THIGH, SHANK, UPPER_ARM, FOREARM, HAND, FOOT = 0.245, 0.245, 0.175, 0.15, 0.06, 0.09
HEAD_RADIUS = 0.065

# Features of the head in its own frame, in head radii (x left, y up, z forward).
_FACE = {
    NOSE: (0.0, -0.12, 1.08),
    L_EYE: (0.40, 0.18, 0.90),
    R_EYE: (-0.40, 0.18, 0.90),
    L_EAR: (1.0, 0.0, 0.0),
    R_EAR: (-1.0, 0.0, 0.0),
    MOUTH: (0.0, -0.62, 0.88),
    CROWN: (0.0, 1.35, -0.1),
}


@dataclass
class Figures:
    """P projected people, the farthest first.

    Attributes:
        points: float64 `[P, 27, 3]`: x, y in pixels, z nearness in pixels; the first 17 are COCO's keypoints.
        heights: `[P]`, standing body height in pixels, the unit of every radius.
        face: `[P, 3]`, the way the head faces, in camera axes (x right, y down, z towards the camera).
        widths: `[P]`, factor on limb radii.
    """

    points: np.ndarray
    heights: np.ndarray
    face: np.ndarray
    widths: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


def _turn(angles: np.ndarray, axis: int) -> np.ndarray:
    """Rotation matrices `[P, 3, 3]` about an axis of the body frame."""
    matrices = np.zeros((len(angles), 3, 3))
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    cos, sin = np.cos(angles), np.sin(angles)
    matrices[:, axis, axis] = 1
    matrices[:, a, a] = matrices[:, b, b] = cos
    matrices[:, a, b], matrices[:, b, a] = -sin, sin
    return matrices


def _apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """`[P, 3, 3]` times `[P, ..., 3]`."""
    return np.einsum("pij,p...j->p...i", matrices, vectors)


@dataclass
class _Pose:
    """Joint angles of P people in radians; limb arrays are `[P, 2]`, left and right."""

    lean: np.ndarray
    thigh: np.ndarray
    spread: np.ndarray
    knee: np.ndarray
    arm: np.ndarray
    lift: np.ndarray
    elbow: np.ndarray


def _draw_pose(rng: np.random.Generator, count: int, difficulty: float) -> _Pose:
    """Standing, walking, running, arms raised, sitting, crouching or free; degrees, then radians.

    Each kind is a mean and a spread for every angle, so that the ranges can be read here.
    """
    kinds = rng.choice(7, count, p=_kind_weights(difficulty))
    means, spreads = _POSE_MEANS[kinds], _POSE_SPREADS[kinds]
    angles = means[:, :, None] + (0.7 + 0.3 * difficulty) * spreads[:, :, None] * rng.standard_normal((count, 7, 2))
    # Legs and arms swing in opposition: the sign of a stride alternates between the sides.
    stride = _STRIDES[kinds] * rng.uniform(0.4, 1.0, count) * rng.choice((-1.0, 1.0), count)
    angles[:, 1] += stride[:, None] * (1, -1)
    angles[:, 4] += stride[:, None] * (-0.9, 0.9)
    one_arm = rng.random(count) < 0.35
    side = rng.integers(0, 2, count)
    angles[one_arm, 5, side[one_arm]] += 70 * rng.random(int(one_arm.sum()))
    angles = np.clip(angles, _ANGLE_LOW[:, None], _ANGLE_HIGH[:, None])
    lean, thigh, spread, knee, arm, lift, elbow = np.deg2rad(angles).transpose(1, 0, 2)
    return _Pose(lean[:, 0], thigh, spread, knee, arm, lift, elbow)


def _kind_weights(difficulty: float) -> np.ndarray:
    calm = np.array([0.52, 0.26, 0.0, 0.16, 0.06, 0.0, 0.0])
    wild = np.array([0.16, 0.18, 0.16, 0.14, 0.12, 0.09, 0.15])
    return calm + (wild - calm) * difficulty


#                        lean thigh spread knee  arm  lift elbow
_POSE_MEANS = np.array([
    [2, 2, 5, 6, 4, 14, 22],  # standing
    [4, 6, 3, 18, 4, 10, 28],  # walking
    [14, 22, 3, 48, 0, 14, 85],  # running
    [0, 3, 8, 8, 30, 105, 35],  # arms raised
    [6, 84, 9, 84, 30, 16, 50],  # sitting
    [30, 98, 12, 112, 45, 18, 45],  # crouching
    [8, 30, 16, 40, 40, 50, 50],  # free
], np.float64)  # fmt: skip
_POSE_SPREADS = np.array([
    [5, 7, 4, 6, 16, 9, 20],
    [5, 6, 3, 12, 10, 6, 16],
    [6, 10, 4, 22, 14, 8, 16],
    [6, 8, 6, 8, 25, 35, 28],
    [8, 8, 7, 12, 18, 10, 26],
    [10, 10, 8, 12, 22, 12, 26],
    [16, 34, 14, 32, 45, 40, 35],
], np.float64)  # fmt: skip
_STRIDES = np.array([0, 24, 42, 0, 0, 0, 0], np.float64)
_ANGLE_LOW = np.array([-15, -30, -4, 0, -45, 3, 0], np.float64)
_ANGLE_HIGH = np.array([60, 125, 55, 140, 165, 170, 145], np.float64)


def _limb(flexion: np.ndarray, abduction: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Unit vectors `[P, 2, 3]`: hanging down, flexed forward, spread outward."""
    return np.stack(
        (side * np.sin(abduction), -np.cos(abduction) * np.cos(flexion), np.cos(abduction) * np.sin(flexion)),
        -1,
    )


def _assemble(rng: np.random.Generator, pose: _Pose) -> tuple[np.ndarray, np.ndarray]:
    """Body points `[P, 27, 3]` and head rotation `[P, 3, 3]` in the body frame, pelvis at the origin."""
    P = len(pose.lean)
    side = np.array([1.0, -1.0])
    points = np.zeros((P, NUM_POINTS, 3))
    trunk = _turn(pose.lean, 0) @ _turn(0.07 * rng.standard_normal(P), 2)
    twist = trunk @ _turn(0.2 * rng.standard_normal(P), 1)
    points[:, [L_HIP, R_HIP], 0] = HIP_HALF * side
    points[:, BELLY] = _apply(trunk, np.tile([0.0, 0.1, 0.005], (P, 1)))
    points[:, CHEST] = _apply(trunk, np.tile([0.0, SPINE * 0.82, 0.01], (P, 1)))
    points[:, NECK] = _apply(trunk, np.tile([0.0, SPINE + 0.015, 0.0], (P, 1)))
    shoulders = np.stack((SHOULDER_HALF * side, np.full(2, SPINE), np.zeros(2)), -1)
    points[:, [L_SHOULDER, R_SHOULDER]] = _apply(twist, np.tile(shoulders, (P, 1, 1)))

    thigh = _limb(pose.thigh, pose.spread, side)
    shank = _limb(pose.thigh - pose.knee, pose.spread * 0.6, side)
    foot = _limb(pose.thigh - pose.knee + np.deg2rad(78), np.deg2rad(14.0) + 0 * pose.knee, side)
    knees = points[:, [L_HIP, R_HIP]] + THIGH * thigh
    ankles = knees + SHANK * shank
    points[:, [L_KNEE, R_KNEE]], points[:, [L_ANKLE, R_ANKLE]] = knees, ankles
    points[:, [L_TOE, R_TOE]] = ankles + FOOT * foot + 0.02 * shank

    upper = _limb(pose.arm, pose.lift, side)
    # The elbow bends towards this direction (forward, a little inward and up), made orthogonal to the arm.
    bend = np.stack((-side * rng.uniform(0.1, 0.9, (P, 2)), rng.uniform(0, 0.6, (P, 2)), np.ones((P, 2))), -1)
    bend -= (bend * upper).sum(-1, keepdims=True) * upper
    bend /= np.linalg.norm(bend, axis=-1, keepdims=True) + 1e-9
    lower = np.cos(pose.elbow)[..., None] * upper + np.sin(pose.elbow)[..., None] * bend
    elbows = points[:, [L_SHOULDER, R_SHOULDER]] + UPPER_ARM * _apply(twist, upper)
    wrists = elbows + FOREARM * _apply(twist, lower)
    points[:, [L_ELBOW, R_ELBOW]], points[:, [L_WRIST, R_WRIST]] = elbows, wrists
    points[:, [L_HAND, R_HAND]] = wrists + HAND * 0.7 * _apply(twist, lower)

    upright = _turn(pose.lean * 0.35 + 0.12 * rng.standard_normal(P), 0)
    head = upright @ _turn(0.35 * rng.standard_normal(P), 1) @ _turn(0.1 * rng.standard_normal(P), 2)
    points[:, HEAD] = points[:, NECK] + _apply(head, np.tile([0.0, 0.105, 0.015], (P, 1)))
    for joint, place in _FACE.items():
        points[:, joint] = points[:, HEAD] + HEAD_RADIUS * _apply(head, np.tile(place, (P, 1)))
    return points, head


def _views(rng: np.random.Generator, count: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Camera rotation `[P, 3, 3]` and roll in the image `[P]`, radians.

    Most people face the camera more or less; the harder, the more turn their back or their side to it, and
    the more lie down.
    """
    kind = rng.random(count)
    toward = (0.3 + 0.2 * difficulty) * rng.standard_normal(count)
    anywhere = rng.uniform(-np.pi, np.pi, count)
    back = 0.08 + 0.17 * difficulty
    yaw = np.where(kind < back, np.pi + toward, np.where(kind < back + 0.3 * difficulty, anywhere, toward))
    roll = 0.07 * rng.standard_normal(count)
    lying = rng.random(count) < 0.08 * difficulty
    roll = roll + lying * rng.choice((-1.0, 1.0), count) * rng.uniform(0.9, 1.8, count)
    return _turn(0.15 + 0.1 * rng.standard_normal(count), 0) @ _turn(yaw, 1), roll


def draw_figures(rng: np.random.Generator, count: int, size: tuple[int, int], difficulty: float) -> Figures:
    """Draws, poses and places people.

    Args:
        rng: consumed in a fixed order.
        count: P.
        size: `(height, width)` of the image in pixels.
        difficulty: 0..1, share of unusual poses and views.
    """
    body, head = _assemble(rng, _draw_pose(rng, count, difficulty))
    camera, roll = _views(rng, count, difficulty)
    seen = _apply(camera, body) * (1, -1, 1)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    x, y = seen[..., 0] * cos - seen[..., 1] * sin, seen[..., 0] * sin + seen[..., 1] * cos
    gaze = _apply(camera, head[:, :, 2]) * (1, -1, 1)
    face = np.stack(
        (
            gaze[:, 0] * cos[:, 0] - gaze[:, 1] * sin[:, 0],
            gaze[:, 0] * sin[:, 0] + gaze[:, 1] * cos[:, 0],
            gaze[:, 2],
        ),
        -1,
    )
    heights = np.sort(_heights(rng, count, size))  # the nearest, and so the tallest, is painted last
    points = np.stack((x, y, seen[..., 2]), -1) * heights[:, None, None]
    # A little perspective: near parts are larger.
    points[..., :2] *= 1 + 0.25 * points[..., 2:] / heights[:, None, None]
    points[..., :2] += _places(rng, points, size, difficulty)[:, None]
    return Figures(points, heights, face, rng.normal(1.2, 0.12, count).clip(0.95, 1.5))


def _heights(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Body heights in pixels: log-uniform, smaller if there are several people."""
    low, high = 0.42, (1.05, 0.95, 0.9)[min(count, 3) - 1]
    return size[0] * np.exp(rng.uniform(np.log(low), np.log(high), count))


def _places(rng: np.random.Generator, points: np.ndarray, size: tuple[int, int], difficulty: float) -> np.ndarray:
    """Offsets `[P, 2]`: side by side in random order with jitter; some stick out of the image."""
    count = len(points)
    low, high = points[..., :2].min(1), points[..., :2].max(1)
    extent = high - low
    height, width = size
    lane = (rng.permutation(count) + rng.uniform(0.15, 0.85, count)) / count
    x = lane * width - 0.5 * (low[:, 0] + high[:, 0])
    slack = np.maximum(height - extent[:, 1], 0.0)
    y = slack * rng.beta(2.2, 1.2, count) - low[:, 1] + np.minimum(height - extent[:, 1], 0.0) * rng.random(count)
    outside = rng.random(count) < 0.06 + 0.2 * difficulty
    keep = np.clip(x, -low[:, 0] + 0.02 * width, width * 0.98 - high[:, 0])
    x = np.where(outside | (extent[:, 0] > 0.96 * width), x, keep)
    y += np.where(outside, rng.choice((-0.25, 0.35), count) * extent[:, 1] * rng.random(count), 0.0)
    return np.stack((x, y), -1)
