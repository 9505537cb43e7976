"""Synthetic people, part 4: exact COCO annotations, read from the painter's label plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from posekd.data.synthetic import body, paint
from posekd.data.synthetic.body import Figures

# A keypoint is visible (v = 2) where one of these parts of its own person is on top. Eyes, nose and ears belong
# to the skull; a hip seen through the trousers' top counts, as COCO's annotators count it.
_OWN_PARTS = (
    *((paint.SKULL,) for _ in range(5)),
    (paint.L_UPPER_ARM, paint.TORSO), (paint.R_UPPER_ARM, paint.TORSO),
    (paint.L_UPPER_ARM, paint.L_FOREARM), (paint.R_UPPER_ARM, paint.R_FOREARM),
    (paint.L_FOREARM,), (paint.R_FOREARM,),
    (paint.PELVIS, paint.L_THIGH, paint.TORSO), (paint.PELVIS, paint.R_THIGH, paint.TORSO),
    (paint.L_THIGH, paint.L_SHANK), (paint.R_THIGH, paint.R_SHANK),
    (paint.L_SHANK, paint.L_FOOT), (paint.R_SHANK, paint.R_FOOT),
)  # fmt: skip
_IS_OWN = np.zeros((body.NUM_JOINTS, paint.PARTS_A_PERSON), bool)
for _joint, _parts in enumerate(_OWN_PARTS):
    _IS_OWN[_joint, list(_parts)] = True

MIN_AREA = 64  # pixels; a person with a smaller visible area has no annotation
MIN_SEEN = 3  # visible keypoints; a person with fewer is annotated without keypoints, as in COCO


def visibility(figures: Figures, labels: np.ndarray) -> np.ndarray:
    """COCO's visibility of every keypoint.

    Unlabelled (0): outside the image, or a feature of the face on the far side of the head. Occluded (1):
    something else is on top there, or the trunk lies between the keypoint and the camera. Visible (2) otherwise.

    Args:
        figures: P people.
        labels: uint8 `[H, W]`, the painter's label plane.

    Returns:
        int64 `[P, 17]`.
    """
    P, J = len(figures), body.NUM_JOINTS
    joints = figures.points[:, :J]
    height, width = labels.shape
    x, y = np.rint(joints[..., 0]).astype(np.int64), np.rint(joints[..., 1]).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    top = labels[y.clip(0, height - 1), x.clip(0, width - 1)].astype(np.int64)
    part = top - 1 - paint.PARTS_A_PERSON * np.arange(P)[:, None]
    own = (part >= 0) & (part < paint.PARTS_A_PERSON)
    own &= _IS_OWN[np.arange(J), part.clip(0, paint.PARTS_A_PERSON - 1)]
    unit = figures.heights[:, None]
    trunk = figures.points[:, [body.CHEST, body.CHEST, body.BELLY, body.BELLY], 2]
    corners = [body.L_SHOULDER, body.R_SHOULDER, body.L_HIP, body.R_HIP]
    own[:, corners] &= joints[:, corners, 2] > trunk - 0.05 * unit
    beyond = joints[:, :5, 2] - figures.points[:, [body.HEAD], 2]
    turned_away = beyond < np.array([-0.1, 0.15, 0.15, -0.35, -0.35]) * body.HEAD_RADIUS * unit
    seen = np.where(own, 2, 1)
    seen[:, :5] = np.where(turned_away, 0, seen[:, :5])
    return np.where(inside, seen, 0)


def annotate(figures: Figures, labels: np.ndarray, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of the people that can be seen.

    Args:
        figures: P people.
        labels: uint8 `[H, W]`, the painter's label plane.
        image_id: id of the image.
        first_id: annotation id of the first person; person p gets `first_id + p`, seen or not.
    """
    seen = visibility(figures, labels)
    annotations = []
    for p in range(len(figures)):
        first = 1 + paint.PARTS_A_PERSON * p
        mask = cv2.inRange(labels, first, first + paint.PARTS_A_PERSON - 1)
        area = cv2.countNonZero(mask)
        if area < MIN_AREA:
            continue
        keypoints = np.zeros((body.NUM_JOINTS, 3))
        if (seen[p] == 2).sum() >= MIN_SEEN:
            labelled = seen[p] > 0
            keypoints[labelled, :2] = figures.points[p, : body.NUM_JOINTS, :2][labelled].round(2)
            keypoints[:, 2] = seen[p]
        box = cv2.boundingRect(mask)
        annotations.append(
            {
                "id": first_id + p,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(area),
                "bbox": [float(v) for v in box],
                "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                "keypoints": keypoints.ravel().tolist(),
                "segmentation": _polygons(mask, box),
            }
        )
    return annotations


def _polygons(mask: np.ndarray, box: Sequence[int]) -> list[list[float]]:
    """Outer outlines in COCO's pixel-edge coordinates.

    OpenCV's contours run through pixel centres and lose half a pixel all around; those of the mask at twice
    the size lose a quarter, so that the polygon covers exactly the centres of the mask's pixels.
    """
    x, y, w, h = box
    doubled = np.repeat(np.repeat(mask[y : y + h, x : x + w], 2, 0), 2, 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((c[:, 0] + 0.5) / 2 + (x, y)).ravel().tolist() for c in contours]
