"""Where points of one frame are in the next: OpenCV's dense inverse search (DIS; Kroeger et al., ECCV 2016)."""

from __future__ import annotations

import cv2
import numpy as np

SMALLEST = 32  # pixels of the shorter side; OpenCV's pyramid needs some


def dense_flow(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """How far each pixel has moved, float32 `[H, W, 2]` (x, y) in pixels.

    Args:
        before: uint8 RGB `[H, W, 3]`.
        after: the next frame.

    Returns:
        None where nobody can say: the frames differ in size, or are smaller than `SMALLEST`.
    """
    if before.shape != after.shape or min(before.shape[:2]) < SMALLEST:
        return None
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: np.ndarray = search.calc(*grey, None)  # type: ignore[call-overload]
    return flow


def move_points(points: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Points after they have moved with the flow, which is interpolated between pixels.

    Args:
        points: float64 `[..., 2]` (x, y) in pixels; those outside the image move as its border does.
        flow: see `dense_flow`.
    """
    maps = points.reshape(-1, 1, 2).astype(np.float32)
    if not len(maps):
        return points
    moves = cv2.remap(flow, maps, np.zeros(0, np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return points + moves.reshape(points.shape).astype(np.float64)
