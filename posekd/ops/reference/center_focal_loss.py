"""`center_focal_loss` in plain PyTorch: the definition that the kernels are tested against, and its ideal targets."""

from __future__ import annotations

import torch
from torch import Tensor

OVERLAP = 0.7
WIDTHS = (6.0, 6.0, 5.0)  # CenterNet: a corner's sigma is a sixth of its Gaussian's diameter, a centre's a fifth
SURE = 1e-4  # probabilities are clamped to SURE .. 1 - SURE


def gaussian_radius(height: Tensor, width: Tensor, divided: bool) -> Tensor:
    """How far a corner may be off while the box still overlaps by 0.7, in pixels, `[...]` float64.

    Args:
        height: of boxes, `[...]` in pixels.
        width: likewise.
        divided: whether the quadratic formula divides by 2a, as CornerNet's present code does; CenterNet has the older
            code, which divides by 2 and gives larger radii.
    """
    h, w = height.double(), width.double()
    both, area, share = h + w, h * w, OVERLAP

    def root(a: float, b: Tensor, c: Tensor, sign: float) -> Tensor:
        return (b + sign * (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a if divided else 2)

    sign = -1.0 if divided else 1.0
    outer = root(1.0, both, area * (1 - share) / (1 + share), sign)
    inner = root(4.0, 2 * both, area * (1 - share), sign)
    mixed = root(4 * share, -2 * share * both, area * (share - 1), 1.0)
    return torch.minimum(torch.minimum(outer, inner), mixed)


def point_targets(boxes: Tensor, counts: Tensor, size: tuple[int, int], divided: bool) -> Tensor:
    """Ideal maps of boxes: a Gaussian at each corner and centre, peak 1, people merged by the maximum.

    Args:
        boxes: `[B, P, 4]` (x1, y1, x2, y2) in map pixels; one without an extent, or that is not finite, draws nothing.
        counts: int64 `[B]`, how many of the P boxes each image has.
        size: `(height, width)` of the maps.
        divided: see `gaussian_radius`.

    Returns:
        float32 `[B, 3, *size]`: top-left corners, bottom-right corners, centres.
    """
    B, P, _ = boxes.shape
    there = torch.arange(P, device=boxes.device) < counts[:, None]
    there = there & boxes.isfinite().all(-1) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    x1, y1, x2, y2 = torch.where(there[..., None], boxes.double(), 1.0).unbind(-1)
    radius = gaussian_radius((y2 - y1).ceil(), (x2 - x1).ceil(), divided).clamp(min=0).floor()
    points = (x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2)
    rows, columns = (torch.arange(side, device=boxes.device, dtype=torch.float64) for side in size)
    maps = []
    for (x, y), share in zip(points, WIDTHS, strict=True):
        sigma = (2 * radius + 1) / share

        def profile(pixels: Tensor, at: Tensor, sigma: Tensor = sigma) -> Tensor:
            d = pixels - at.floor()[..., None]
            return torch.where(d.abs() <= radius[..., None], torch.exp(-(d**2) / (2 * sigma**2)[..., None]), 0.0)

        down, across = profile(rows, y) * there[..., None], profile(columns, x)
        drawn = boxes.new_zeros((B, *size), dtype=torch.float64)
        for p in range(P):
            drawn = torch.maximum(drawn, down[:, p, :, None] * across[:, p, None, :])
        maps.append(drawn)
    return torch.stack(maps, 1).float()


def _slopes(logits: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel's term and its derivative, `[B, 3, H, W]`, and the points of each map over the batch, `[3]`."""
    raw = logits.sigmoid()
    p = raw.clamp(SURE, 1 - SURE)
    log_p, log_q = p.log(), (1 - p).log()
    point = targets == 1
    far = (1 - targets) ** 4
    if mask is not None:
        far = far * mask[:, None]
    term = torch.where(point, (1 - p) ** 2 * log_p, far * p**2 * log_q)
    slope = torch.where(point, (1 - p) ** 2 * ((1 - p) - 2 * p * log_p), far * p**2 * (2 * (1 - p) * log_q - p))
    slope = torch.where((raw >= SURE) & (raw <= 1 - SURE), slope, 0.0)
    return term, slope, point.sum((0, 2, 3))


def center_focal_loss(
    logits: Tensor, boxes: Tensor, counts: Tensor, mask: Tensor | None, divided: bool
) -> tuple[Tensor, Tensor]:
    """The loss of each map `[3]`, and their numbers of points `[3]`; see `posekd.ops.center_focal_loss`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = point_targets(boxes, counts, (logits.shape[2], logits.shape[3]), divided).to(wide.dtype)
    term, _, points = _slopes(wide, targets, mask)
    return -term.sum((0, 2, 3)) / points.clamp(min=1), points.to(torch.int64)


def center_focal_loss_backward(
    upstream: Tensor, points: Tensor, logits: Tensor, boxes: Tensor, counts: Tensor, mask: Tensor | None, divided: bool
) -> Tensor:
    """The derivative by the logits, written out; `upstream` is `[3]`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = point_targets(boxes, counts, (logits.shape[2], logits.shape[3]), divided).to(wide.dtype)
    _, slope, _ = _slopes(wide, targets, mask)
    scale = -upstream.to(wide.dtype) / points.clamp(min=1)
    return (slope * scale[None, :, None, None]).to(logits.dtype)
