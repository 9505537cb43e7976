"""Boxes from heatmaps of their corners and centres."""

from __future__ import annotations

import torch
from torch import Tensor

from posekd.ops import checks, library
from posekd.ops.group_stages import MOST_PEOPLE, check_count, top_k_peaks
from posekd.ops.reference import decode_boxes as definition

WINDOW = 3  # CenterNet: a point is the highest of 3 x 3 pixels
SIGMA = 0.5  # CornerNet's soft-NMS


def _outputs(corners: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    B = corners.shape[0]
    return (
        corners.new_empty((B, max_boxes, 4)),
        corners.new_empty((B, max_boxes)),
        corners.new_empty((B,), dtype=torch.int64),
    )


def _kernel(
    corners: Tensor, centers: Tensor, areas_scale: Tensor, mirrored: int, max_boxes: int, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(corners, max_boxes)
    workspace = None
    if library.on_device(corners):
        B, V, _, k, _ = corners.shape
        workspace = corners.new_empty((B, V * k * k))
    library.core().pair_corners(
        corners.contiguous(), centers.contiguous(), areas_scale.contiguous(), *outputs, workspace, mirrored, sigma,
        library.threads(),
    )  # fmt: skip
    return outputs


_pair = library.define(
    "pair_corners(Tensor corners, Tensor centers, Tensor areas_scale, int mirrored, int max_boxes, float sigma)"
    " -> (Tensor, Tensor, Tensor)",
    kernel=_kernel,
    reference=definition.pair_corners,
    fake=lambda corners, centers, areas_scale, mirrored, max_boxes, sigma: _outputs(corners, max_boxes),
    supports=lambda corners, centers, *rest: corners.numel() > 0 and centers.numel() > 0,
)


def box_points(heatmaps: Tensor, offsets: Tensor, *, top_k: int = 32) -> Tensor:
    """The highest points of each map, moved inside their pixels.

    Args:
        heatmaps: logits `[B, C, H, W]`, one map for each kind of point.
        offsets: `[B, 2 C, H, W]`, x and y of each kind.
        top_k: points of each map.

    Returns:
        float32 `[B, C, top_k, 3]` (x, y in map pixels, probability), by descending probability, the earlier pixel first
        among equals; rows of zeros where there are fewer.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import box_points
        >>> heatmaps = torch.full((1, 3, 8, 8), -9.0)
        >>> heatmaps[0, 0, 2, 5] = 3.0
        >>> box_points(heatmaps, torch.full((1, 6, 8, 8), 0.5), top_k=1)[0, 0].tolist()
        [[5.5, 2.5, 0.9525741338729858]]
    """
    checks.check_tensor("heatmaps", heatmaps, "B C H W")
    checks.check_tensor("offsets", offsets, "B 2C H W")
    B, C, H, W = heatmaps.shape
    checks.check_shape("offsets", offsets, (B, 2 * C, H, W), "heatmaps")
    checks.check_device("offsets", offsets, heatmaps, "heatmaps")
    check_count("top_k", top_k, 1, MOST_PEOPLE)
    inside = offsets.detach().float().reshape(B, C, 2, H, W).permute(0, 1, 3, 4, 2)
    peaks = top_k_peaks(
        heatmaps.detach().float().sigmoid(), inside, max_people=top_k, detection_threshold=0.0, nms_kernel=WINDOW
    )
    return torch.cat((peaks[..., :2] + peaks[..., 3:], peaks[..., 2:3]), -1)


def pair_corners(
    corners: Tensor,
    centers: Tensor,
    areas_scale: Tensor,
    *,
    mirrored: int = 0,
    max_boxes: int = 32,
    sigma: float = SIGMA,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes from corners that a centre confirms, without duplicates (CenterNet's decoding).

    Each top-left corner is paired with each bottom-right corner of its view that lies right of it and below. Such a box
    stays if a centre lies inside its central region, strictly: the middle third of each side if its area, times
    `areas_scale`, is at most 22,500 square pixels, else the middle fifth. Its score is the mean of the two corners' and
    of the first (highest) such centre's. Then soft-NMS: the best box is taken, every other score is multiplied by
    `exp(-IoU^2 / sigma)`, and so on.

    Args:
        corners: float32 `[B, V, 2, k, 3]` (x, y, score): of each of V views (scales of the image, its mirror image) the
            top-left and the bottom-right corners, in common coordinates; those of score 0 are none.
        centers: float32 `[B, c, 3]` (x, y, score), by descending score.
        areas_scale: float32 `[B]`, square pixels of the original image per square unit of x and y.
        mirrored: how many of the last views are of mirror images, mirrored back: their corners are top-right and
            bottom-left ones.
        max_boxes: how many are kept.
        sigma: of the soft-NMS; smaller lowers more.

    Returns:
        boxes float32 `[B, max_boxes, 4]` (x1, y1, x2, y2) by descending lowered score, scores `[B, max_boxes]` and
        counts int64 `[B]`; zeros behind those found. Nothing waits for a GPU. No derivative.

    Raises:
        TypeError, ValueError: an argument has a wrong type, shape, device or value; the message names it.

    Examples:
        >>> import torch
        >>> from posekd.ops import pair_corners
        >>> corners = torch.tensor([[[[[2.0, 3.0, 0.9]], [[8.0, 15.0, 0.6]]]]])
        >>> boxes, scores, counts = pair_corners(corners, torch.tensor([[[5.0, 9.0, 0.9]]]), torch.tensor([16.0]))
        >>> boxes[0, 0].tolist(), round(scores[0, 0].item(), 3), counts.tolist()
        ([2.0, 3.0, 8.0, 15.0], 0.8, [1])
    """
    floats = (torch.float32,)
    checks.check_tensor("corners", corners, "B V 2 k 3", floats)
    B, V, _, k, _ = corners.shape
    checks.check_shape("corners", corners, (B, V, 2, k, 3), "the two corners of boxes")
    checks.check_tensor("centers", centers, "B c 3", floats)
    checks.check_shape("centers", centers, (B, centers.shape[1], 3), "corners")
    checks.check_tensor("areas_scale", areas_scale, "B", floats)
    checks.check_shape("areas_scale", areas_scale, (B,), "corners")
    for name, value in (("centers", centers), ("areas_scale", areas_scale)):
        checks.check_device(name, value, corners, "corners")
    check_count("max_boxes", max_boxes, 1)
    check_count("mirrored", mirrored, 0, V)
    checks.check_positive("sigma", sigma)
    return _pair(corners.detach(), centers.detach(), areas_scale.detach(), mirrored, max_boxes, float(sigma))  # type: ignore[no-any-return]


def decode_boxes(
    heatmaps: Tensor, offsets: Tensor, areas_scale: Tensor, *, top_k: int = 32, max_boxes: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of people from one scale's maps: `box_points`, then `pair_corners`.

    Args:
        heatmaps: logits `[B, 3, H, W]` of top-left corners, bottom-right corners and centres.
        offsets: `[B, 6, H, W]`, x and y of each point inside its pixel.
        areas_scale: float32 `[B]`, square pixels of the original image per square map pixel.
        top_k: points of each map.
        max_boxes: how many boxes are kept.

    Returns:
        boxes float32 `[B, max_boxes, 4]` (x1, y1, x2, y2) in map pixels, scores `[B, max_boxes]`, counts int64 `[B]`;
        see `pair_corners`.

    Raises:
        TypeError, ValueError: as `box_points` and `pair_corners`.

    Examples:
        >>> import torch
        >>> from posekd.ops import decode_boxes
        >>> heatmaps = torch.full((1, 3, 32, 32), -9.0)
        >>> for point, (y, x) in enumerate([(4, 6), (24, 18), (14, 12)]):
        ...     heatmaps[0, point, y, x] = 5.0
        >>> boxes, scores, counts = decode_boxes(heatmaps, torch.zeros(1, 6, 32, 32), torch.tensor([16.0]))
        >>> boxes[0, 0].tolist(), round(scores[0, 0].item(), 3)
        ([6.0, 4.0, 18.0, 24.0], 0.993)
    """
    checks.check_tensor("heatmaps", heatmaps, "B 3 H W")
    checks.check_shape("heatmaps", heatmaps, (heatmaps.shape[0], 3, *heatmaps.shape[2:]), "the three kinds of points")
    points = box_points(heatmaps, offsets, top_k=top_k)
    return pair_corners(points[:, None, :2], points[:, 2].contiguous(), areas_scale, max_boxes=max_boxes)
