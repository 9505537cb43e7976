"""`pair_corners` in plain PyTorch: the definition that the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL_AREA = (
    22_500.0  # CenterNet: up to here, in square pixels of the image, the central region is a third, else a fifth
)


def _candidates(corners: Tensor, centers: Tensor, areas_scale: Tensor, mirrored: int) -> tuple[Tensor, Tensor]:
    """Every pair of corners of one view as a box, `[B, V k k, 4]`, and its score, 0 where it is none."""
    top, bottom = corners[:, :, 0, :, None], corners[:, :, 1, None]  # [B, V, k, 1, 3] and [B, V, 1, k, 3]
    V = corners.shape[1]
    swapped = (torch.arange(V, device=corners.device) >= V - mirrored)[:, None, None]
    a, y1, b, y2 = torch.broadcast_tensors(top[..., 0], top[..., 1], bottom[..., 0], bottom[..., 1])
    x1, x2 = torch.where(swapped, b, a), torch.where(swapped, a, b)
    area = (x2 - x1) * (y2 - y1) * areas_scale[:, None, None, None]
    n = torch.where(area <= SMALL_AREA, 3.0, 5.0).to(area.dtype)
    cx, cy, found = (centers[:, None, None, None, :, i] for i in range(3))

    def central(low: Tensor, high: Tensor, at: Tensor) -> Tensor:
        left, right = ((n + 1) * low + (n - 1) * high) / (2 * n), ((n - 1) * low + (n + 1) * high) / (2 * n)
        return (at > left[..., None]) & (at < right[..., None])

    inside = central(x1, x2, cx) & central(y1, y2, cy) & (found > 0)
    first = inside.to(torch.uint8).argmax(-1)  # centres stand by descending score
    center = centers[..., 2][:, None, None].expand(-1, *first.shape[1:3], -1).gather(3, first)
    score = (top[..., 2] + bottom[..., 2] + center) / 3
    is_box = (top[..., 2] > 0) & (bottom[..., 2] > 0) & (x2 > x1) & (y2 > y1) & inside.any(-1)
    return torch.stack((x1, y1, x2, y2), -1).flatten(1, 3), torch.where(is_box, score, 0.0).flatten(1)


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """IoU of `[B, C, 4]` with one box of each image, `[B, 1, 4]`."""
    low, high = torch.maximum(boxes[..., :2], box[..., :2]), torch.minimum(boxes[..., 2:], box[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1), (box[..., 2:] - box[..., :2]).prod(-1)
    return shared / (areas[0] + areas[1] - shared)


def pair_corners(
    corners: Tensor, centers: Tensor, areas_scale: Tensor, mirrored: int, max_boxes: int, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `posekd.ops.pair_corners`."""
    B, nothing = corners.shape[0], corners.new_zeros
    kept, kept_scores = [nothing((B, 0, 4))], [nothing((B, 0))]
    if corners.numel() and centers.numel():
        boxes, scores = _candidates(corners, centers, areas_scale, mirrored)
        boxes = torch.where((scores > 0)[..., None], boxes, 0.0)
        for _ in range(min(max_boxes, scores.shape[1])):
            score, best = scores.max(1, keepdim=True)
            box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
            kept.append(torch.where((score > 0)[..., None], box, 0.0))
            kept_scores.append(score)
            overlap = torch.where(scores > 0, _overlap(boxes, box), 0.0)
            scores = (scores * torch.exp(-(overlap**2) / sigma)).scatter(1, best, 0.0)
    left = max_boxes - len(kept) + 1
    boxes = torch.cat([*kept, nothing((B, left, 4))], 1)
    scores = torch.cat([*kept_scores, nothing((B, left))], 1)
    return boxes, scores, (scores > 0).sum(1)
