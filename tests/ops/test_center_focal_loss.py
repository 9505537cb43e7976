"""CenterNet's focal loss against the formulas written out, its targets, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posekd.ops import center_focal_loss
from posekd.ops.reference import center_focal_loss as definition
from posekd.ops.reference.center_focal_loss import gaussian_radius, point_targets


def published_radius(height: float, width: float, divided: bool) -> float:
    """CornerNet's `gaussian_radius`, as it is (`divided`) and as CenterNet copied it."""
    o = 0.7
    a1, b1, c1 = 1, height + width, width * height * (1 - o) / (1 + o)
    a2, b2, c2 = 4, 2 * (height + width), (1 - o) * width * height
    a3, b3, c3 = 4 * o, -2 * o * (height + width), (o - 1) * width * height
    roots = [math.sqrt(b * b - 4 * a * c) for a, b, c in ((a1, b1, c1), (a2, b2, c2), (a3, b3, c3))]
    if divided:
        return min((b1 - roots[0]) / (2 * a1), (b2 - roots[1]) / (2 * a2), (b3 + roots[2]) / (2 * a3))
    return min((b1 + roots[0]) / 2, (b2 + roots[1]) / 2, (b3 + roots[2]) / 2)


@pytest.mark.parametrize(("divided", "pixels"), [(False, 22.6), (True, 6.7)])
def test_both_published_radii(divided, pixels):
    """100 x 70 pixels: what the two repositories' functions give."""
    sides = torch.tensor([[100.0, 70.0], [7.0, 9.0], [1.0, 1.0], [300.0, 20.0]])
    found = gaussian_radius(sides[:, 0], sides[:, 1], divided)
    assert round(found[0].item(), 1) == pixels
    assert found.tolist() == pytest.approx([published_radius(*pair, divided) for pair in sides.tolist()])


def painted(boxes: list[list[float]], size: tuple[int, int], divided: bool) -> Tensor:
    """CenterNet's `draw_gaussian` with a loop over pixels, float64 `[3, H, W]`."""
    maps = torch.zeros(3, *size, dtype=torch.float64)
    for x1, y1, x2, y2 in boxes:
        radius = max(0, int(published_radius(math.ceil(y2 - y1), math.ceil(x2 - x1), divided)))
        for point, (x, y) in enumerate(((x1, y1), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2))):
            sigma = (2 * radius + 1) / (5 if point == 2 else 6)
            for row in range(max(0, int(y) - radius), min(size[0], int(y) + radius + 1)):
                for column in range(max(0, int(x) - radius), min(size[1], int(x) + radius + 1)):
                    value = math.exp(-((column - int(x)) ** 2 + (row - int(y)) ** 2) / (2 * sigma**2))
                    maps[point, row, column] = max(maps[point, row, column].item(), value)
    return maps


BOXES = [
    [[2.3, 3.8, 11.2, 19.0], [4.0, 5.0, 12.9, 20.5]],
    [[0.0, 0.0, 15.75, 23.75]],
    [[6.5, 7.5, 7.4, 8.4], [1.0, 2.0, 9.0, 20.0], [3.0, 3.0, 3.0, 9.0]],  # below a pixel; the last has no width
]
SIZE = (24, 16)


def padded() -> tuple[Tensor, Tensor]:
    boxes = torch.full((3, 4, 4), 5.0)
    boxes[0, 3] = torch.tensor([1.0, 1.0, 9.0, 9.0])  # beyond the count
    for b, own in enumerate(BOXES):
        boxes[b, : len(own)] = torch.tensor(own)
    return boxes, torch.tensor([2, 1, 3])


@pytest.mark.parametrize("divided", [False, True])
def test_targets(divided):
    boxes, counts = padded()
    found = point_targets(boxes, counts, SIZE, divided)
    for b, own in enumerate(BOXES):
        expected = painted([box for box in own if box[2] > box[0]], SIZE, divided)
        torch.testing.assert_close(found[b].double(), expected, rtol=1e-6, atol=1e-7)


def by_the_book(logits: Tensor, targets: Tensor, mask: Tensor) -> list[float]:
    """The three losses with a loop over pixels, in float64."""
    losses = []
    for point in range(3):
        total, positives = 0.0, 0
        for b in range(len(logits)):
            pixels = zip(logits[b, point].flatten().tolist(), targets[b, point].flatten().tolist(), strict=True)
            for (x, t), counted in zip(pixels, mask[b].flatten().tolist(), strict=True):
                p = min(max(1 / (1 + math.exp(-x)), 1e-4), 1 - 1e-4)
                if t == 1:
                    total, positives = total + (1 - p) ** 2 * math.log(p), positives + 1
                elif counted:
                    total += (1 - t) ** 4 * p**2 * math.log(1 - p)
        losses.append(-total / max(positives, 1))
    return losses


@pytest.mark.parametrize("radius", ["centernet", "cornernet"])
def test_the_loss(backend, radius):
    boxes, counts = padded()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 3, *SIZE, generator=generator) * 6  # some beyond the clamp
    mask = torch.rand(3, *SIZE, generator=generator) > 0.3
    targets = point_targets(boxes, counts, SIZE, radius == "cornernet")
    given = [x.to(backend.device) for x in (logits, boxes, counts, mask)]
    loss, terms = center_focal_loss(*given, radius=radius, return_terms=True)
    assert terms.tolist() == pytest.approx(by_the_book(logits, targets.double(), mask), rel=1e-5)
    assert loss.item() == pytest.approx(terms.sum().item())
    assert torch.equal(center_focal_loss(*given, radius=radius), loss)
    everything = torch.ones_like(given[3])
    assert torch.equal(
        center_focal_loss(*given[:3], everything, radius=radius), center_focal_loss(*given[:3], radius=radius)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_kernels_are_as_good_as_the_definition(backend, dtype):
    """Loss, points and gradient, a map of several strips, people that share pixels, crowds, logits beyond the clamp."""
    if dtype == torch.float64 and not backend.float64:
        pytest.skip("the device kernels have no float64")
    generator = torch.Generator().manual_seed(5)
    low = torch.rand(2, 40, 2, generator=generator) * 40
    boxes = torch.cat((low, low + torch.rand(2, 40, 2, generator=generator) * 30), -1)
    boxes[0, 3], boxes[0, 5, 2] = boxes[0, 4], torch.nan
    counts, mask = torch.tensor([40, 17]), torch.rand(2, 45, 52, generator=generator) > 0.2
    logits = (torch.randn(2, 3, 45, 52, generator=generator) * 5).to(dtype)
    upstream = torch.tensor([0.5, 2.0, -1.0])
    results = []
    for x, there in ((logits.to(backend.device), backend.device), (logits.double(), torch.device("cpu"))):
        leaf = x.detach().requires_grad_()
        moved = [y.to(there) for y in (boxes, counts, mask)]
        if there == torch.device("cpu") and x.dtype == torch.float64:
            terms, points = definition.center_focal_loss(leaf, *moved, False)
        else:
            terms, points = torch.ops.posekd.center_focal_loss(leaf, *moved, False, False)
        terms.backward(upstream.to(terms))
        results.append((terms, points, leaf.grad))
    (terms, points, gradient), (wanted, wanted_points, wanted_gradient) = results
    eps = {torch.float32: 1e-5, torch.float64: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert points.tolist() == wanted_points.tolist()
    torch.testing.assert_close(terms.cpu().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.cpu().double(), wanted_gradient, rtol=eps, atol=eps * 1e-2)


def test_the_gradient():
    boxes, counts = torch.tensor([[[1.0, 1.5, 4.0, 6.0], [0.0, 2.0, 3.0, 5.0]]]), torch.tensor([2])
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 8, 6, generator=generator).double().requires_grad_()
    mask = torch.rand(1, 8, 6, generator=generator) > 0.3

    def terms(x: Tensor) -> Tensor:
        return center_focal_loss(x, boxes, counts, mask, return_terms=True)[1]

    assert torch.autograd.gradcheck(terms, logits)
    far = torch.full((1, 3, 8, 6), 20.0, requires_grad=True)
    center_focal_loss(far, boxes, counts).backward()
    assert not far.grad.any()  # clamped


def test_nobody():
    """Without a positive the negative sum is not divided."""
    logits = torch.zeros(2, 3, 4, 5, requires_grad=True)
    loss = center_focal_loss(logits, torch.zeros(2, 0, 4), torch.zeros(2, dtype=torch.int64))
    assert loss.item() == pytest.approx(2 * 3 * 20 * 0.25 * math.log(2), rel=1e-5)
    loss.backward()
    assert (logits.grad > 0).all()


def test_people_who_share_a_corner_count_once():
    one = torch.tensor([[[2.0, 2.0, 9.0, 20.0], [2.4, 2.9, 14.0, 20.0]]])
    terms = center_focal_loss(torch.zeros(1, 3, *SIZE), one, torch.tensor([2]), return_terms=True)[1]
    targets = point_targets(one, torch.tensor([2]), SIZE, False)
    assert (targets == 1).sum((0, 2, 3)).tolist() == [1, 2, 2]
    assert terms[0].item() == pytest.approx(by_the_book(torch.zeros(1, 3, *SIZE), targets, torch.ones(1, *SIZE))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    boxes, counts = padded()
    logits = torch.randn(3, 3, *SIZE).to(dtype).requires_grad_()
    loss = center_focal_loss(logits, boxes, counts)
    assert loss.dtype == torch.float32
    loss.backward()
    exact = logits.detach().float().requires_grad_()
    center_focal_loss(exact, boxes, counts).backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3, 2, *SIZE)}, "logits must have shape"),
        ({"boxes": torch.zeros(2, 4, 4)}, "boxes must have shape"),
        ({"counts": torch.zeros(2, dtype=torch.int64)}, "counts must have shape"),
        ({"mask": torch.ones(3, 4, 4, dtype=torch.bool)}, "mask must have shape"),
        ({"radius": "mmdet"}, "radius must be one of 'centernet', 'cornernet', got 'mmdet'"),
    ],
)
def test_what_is_refused(changes, message):
    boxes, counts = padded()
    arguments = {"logits": torch.zeros(3, 3, *SIZE), "boxes": boxes, "counts": counts, **changes}
    with pytest.raises(ValueError, match=message):
        center_focal_loss(**arguments)
