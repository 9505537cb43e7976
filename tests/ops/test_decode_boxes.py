"""Boxes from points: CenterNet's decoding written out with loops, and the edges of its rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posekd.ops import box_points, decode_boxes, pair_corners
from posekd.ops.reference import decode_boxes as definition


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def written_out(corners: Tensor, centers: Tensor, scale: float, mirrored: int, most: int) -> list[list[float]]:
    """Boxes and lowered scores of one image: corners `[V, 2, k, 3]`, centers `[c, 3]`."""
    found = []
    views = corners.tolist()
    for v, (tops, bottoms) in enumerate(views):
        swap = v >= len(views) - mirrored
        for ax, ay, a in tops:
            for bx, by, b in bottoms:
                x1, x2 = (bx, ax) if swap else (ax, bx)
                if not (a > 0 and b > 0 and x2 > x1 and by > ay):
                    continue
                n = 3 if (x2 - x1) * (by - ay) * scale <= 22500 else 5
                for cx, cy, c in centers.tolist():
                    left, right = ((n + 1) * x1 + (n - 1) * x2) / (2 * n), ((n - 1) * x1 + (n + 1) * x2) / (2 * n)
                    above, below = ((n + 1) * ay + (n - 1) * by) / (2 * n), ((n - 1) * ay + (n + 1) * by) / (2 * n)
                    if c > 0 and left < cx < right and above < cy < below:
                        found.append([x1, ay, x2, by, (a + b + c) / 3])
                        break
    kept = []
    while found and len(kept) < most:
        best = max(range(len(found)), key=lambda i: found[i][4])
        box = found.pop(best)
        kept.append(box)
        for other in found:
            other[4] *= math.exp(-(overlap(box, other) ** 2) / 0.5)
    return kept


def cases(B: int, V: int, k: int, c: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(B, V, 2, k, 3, generator=generator)
    corners[..., :2] *= 40
    corners[:, :, 1, :, 1] += 10
    corners[:, :, :, -1, 2] = 0  # rows of zeros where there are fewer points
    centers = torch.rand(B, c, 3, generator=generator)
    centers[..., :2] = 10 + 20 * centers[..., :2]
    centers = centers.gather(1, centers[..., 2].argsort(1, descending=True)[..., None].expand(-1, -1, 3))
    return corners, centers, torch.tensor([4.0, 64.0, 1000.0])[:B]


@pytest.mark.parametrize(
    ("V", "k", "c", "mirrored", "most"), [(1, 6, 5, 0, 32), (1, 12, 12, 1, 10), (3, 5, 9, 1, 32), (2, 32, 32, 1, 32)]
)
def test_pairs_are_those_of_the_rules(backend, V, k, c, mirrored, most):
    corners, centers, scales = cases(3, V, k, c, seed=V + k + 1)
    given = [x.to(backend.device) for x in (corners, centers, scales)]
    boxes, scores, counts = (x.cpu() for x in pair_corners(*given, mirrored=mirrored, max_boxes=most))
    assert boxes.shape == (3, most, 4)
    assert counts.sum() >= 3
    for b in range(3):
        expected = torch.tensor(written_out(corners[b], centers[b], scales[b].item(), mirrored, most)).reshape(-1, 5)
        assert counts[b] == len(expected)
        torch.testing.assert_close(boxes[b, : counts[b]], expected[:, :4])
        torch.testing.assert_close(scores[b, : counts[b]], expected[:, 4], rtol=1e-5, atol=1e-6)
        assert not boxes[b, counts[b] :].any()
        assert not scores[b, counts[b] :].any()


def test_kernels_are_the_definition(backend):
    """Many images of crowded points, two views: the same boxes in the same order, scores to the last places."""
    corners, centers, scales = cases(3, 2, 32, 32, seed=11)
    corners[1, :, :, :20, 2] = 0.5  # equal scores: the earlier pair comes first
    given = [x.to(backend.device) for x in (corners, centers, scales)]
    found = pair_corners(*given, mirrored=1, max_boxes=40, sigma=0.4)
    for ours, expected in zip(found, definition.pair_corners(corners, centers, scales, 1, 40, 0.4), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-6)


def one_box(x2: float, y2: float, cx: float, cy: float, scale: float) -> int:
    corners = torch.tensor([[[[[0.0, 0.0, 0.9]], [[x2, y2, 0.9]]]]])
    return int(pair_corners(corners, torch.tensor([[[cx, cy, 0.9]]]), torch.tensor([scale]))[2])


def test_the_central_region_is_a_third_up_to_22500_square_pixels_and_then_a_fifth():
    assert one_box(30, 30, 10.1, 15, 25.0) == 1  # 22,500 square pixels
    assert one_box(30, 30, 10.1, 15, 25.1) == 0
    assert one_box(30, 30, 12.1, 15, 25.1) == 1
    assert one_box(30, 30, 10.0, 15, 1.0) == 0  # on the line is outside
    assert one_box(30, 30, 15, 20.0, 1.0) == 0
    assert one_box(-1, 30, 0, 15, 1.0) == 0
    assert one_box(30, 0, 15, 0, 1.0) == 0


def test_the_first_centre_inside_counts_not_the_nearest():
    corners = torch.tensor([[[[[0.0, 0.0, 0.5]], [[30.0, 30.0, 0.5]]]]])
    centers = torch.tensor([[[18.0, 18.0, 0.8], [15.0, 15.0, 0.2]]])
    _, scores, _ = pair_corners(corners, centers, torch.ones(1))
    assert scores[0, 0].item() == pytest.approx(0.6)


def test_points_are_highest_pixels_moved_by_their_offsets():
    heatmaps = torch.full((1, 2, 6, 7), -8.0)
    heatmaps[0, 0, 2, 3], heatmaps[0, 0, 2, 4], heatmaps[0, 1, 5, 6] = 2.0, 1.0, 3.0  # the second is its neighbour's
    offsets = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 6, 7) / 8
    points = box_points(heatmaps, offsets, top_k=2)
    assert points[0, 0, 0].tolist() == pytest.approx([3.0, 2.125, 0.8808], abs=1e-4)
    assert points[0, 1, 0].tolist() == pytest.approx([6.25, 5.375, 0.9526], abs=1e-4)
    assert points[0, 0, 1, 2] < 1e-3


def test_a_box_of_maps_comes_back():
    heatmaps, offsets = torch.full((2, 3, 32, 24), -9.0), torch.zeros(2, 6, 32, 24)
    for point, (x, y) in enumerate(((5, 4), (19, 28), (12, 16))):
        heatmaps[1, point, y, x] = 6.0
        offsets[1, 2 * point : 2 * point + 2, y, x] = torch.tensor([0.25, 0.5])
    boxes, scores, counts = decode_boxes(heatmaps, offsets, torch.full((2,), 16.0))
    assert boxes[1, 0].tolist() == [5.25, 4.5, 19.25, 28.5]
    assert scores[1, 0] > 0.99
    assert scores[0].max() < 1e-3
    assert counts.shape == (2,)


def test_nothing_in_nothing_out():
    none = torch.full((1, 3, 8, 8), -torch.inf)
    boxes, scores, counts = decode_boxes(none, torch.zeros(1, 6, 8, 8), torch.ones(1))
    assert not boxes.any()
    assert not scores.any()
    assert counts.tolist() == [0]
    boxes, _, counts = decode_boxes(torch.zeros(0, 3, 8, 8), torch.zeros(0, 6, 8, 8), torch.ones(0), max_boxes=5)
    assert (boxes.shape, counts.shape) == ((0, 5, 4), (0,))


def test_values_that_are_not_finite_make_no_box(backend):
    corners, centers, scales = (x.to(backend.device) for x in cases(1, 1, 12, 12, seed=3))
    corners[0, 0, 0, 0, 0], corners[0, 0, 1, 1, 1], centers[0, 2, 0] = torch.nan, torch.inf, torch.nan
    boxes, scores, _ = pair_corners(corners, centers, scales)
    assert boxes.isfinite().all()
    assert scores.isfinite().all()


def test_it_compiles():
    maps, offsets, scale = torch.randn(1, 3, 16, 16), torch.rand(1, 6, 16, 16), torch.ones(1)
    compiled = torch.compile(decode_boxes, backend="eager", fullgraph=True)
    for ours, expected in zip(compiled(maps, offsets, scale), decode_boxes(maps, offsets, scale), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {**a, "corners": a["corners"][:, :, :1]}, r"corners must have shape \(3, 1, 2, 4, 3\)"),
        (lambda a: {**a, "centers": a["centers"][:2]}, r"centers must have shape \(3, 4, 3\) to match corners"),
        (lambda a: {**a, "areas_scale": a["areas_scale"][:2]}, "areas_scale must have shape"),
        (lambda a: {**a, "max_boxes": 0}, "max_boxes must be at least 1, got 0"),
        (lambda a: {**a, "mirrored": 2}, "mirrored must be from 0 to 1, got 2"),
        (lambda a: {**a, "sigma": 0.0}, "sigma must be positive"),
    ],
)
def test_what_is_refused(change, message):
    arguments = dict(zip(("corners", "centers", "areas_scale"), cases(3, 1, 4, 4, seed=0), strict=True))
    with pytest.raises(ValueError, match=message):
        pair_corners(**change(arguments))
    with pytest.raises(ValueError, match=r"offsets must have shape \(1, 6, 8, 8\) to match heatmaps"):
        decode_boxes(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8), torch.ones(1))
