"""SmallerHRNet's Section 3.2 and HigherHRNet's loss, against the formulas written out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from posekd.distill import (
    AssociativeEmbedding,
    AssociativeEmbeddingSettings,
    FrozenTeacher,
    SmallerHRNet,
    SmallerHRNetSettings,
)
from posekd.distill.associative_embedding import label_heatmaps
from posekd.structures import ImageBatch, InputSpec

K, B, SIDE = 3, 2, 64
SPEC = InputSpec(size=(SIDE, SIDE))


class TinyBottomUp(nn.Module):
    """Two strided convolutions: `[B, 2 K, h/4, w/4]` and `[B, K, h/2, w/2]`."""

    def __init__(self, seed: int, spec: InputSpec = SPEC, keypoints: int = K) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.spec = spec
        self.bn = nn.BatchNorm2d(3)
        self.coarse = nn.Conv2d(3, 2 * keypoints, 4, 4)
        self.fine = nn.Conv2d(3, keypoints, 2, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn(x)
        return [self.coarse(x), self.fine(x)]


def batch(people: int = 4, seed: int = 0, side: int = SIDE) -> ImageBatch:
    """Noise; one image with people, some keypoints unlabelled or outside, and one with nobody; masks with holes."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(B, people, K, 3, generator=generator)
    points[..., :2] = points[..., :2] * (side + 16) - 8
    points[..., 2] = (points[..., 2] > 0.2).float() * 2
    points[1, ..., 2] = 0
    points[0, 0, :, 2] = 0  # somebody without a visible keypoint
    masks = [torch.rand(B, side // s, side // s, generator=generator) > 0.2 for s in (4, 2)]
    scaled = [points * torch.tensor([1 / s, 1 / s, 1]) for s in (4, 2)]
    images = torch.randn(B, 3, side, side, generator=generator)
    return ImageBatch(images, scaled, masks, torch.eye(2, 3).repeat(B, 1, 1), torch.arange(B))


def gaussians(points: Tensor, size: int, sigma: float) -> Tensor:
    """HigherHRNet's label heatmaps: centre truncated, window of 3 sigma + 1, people merged by the maximum."""
    maps = torch.zeros(len(points), points.shape[2], size, size, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for b, people in enumerate(points):
        for person in people:
            for k, (px, py, v) in enumerate(person.tolist()):
                cx, cy = int(px), int(py)
                if v > 0 and 0 <= cx < size and 0 <= cy < size:
                    window = ((x - cx).abs() <= 3 * sigma + 1) & ((y - cy).abs() <= 3 * sigma + 1)
                    bell = torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)).double() * window
                    maps[b, k] = torch.maximum(maps[b, k], bell)
    return maps


def group_terms(tags: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pull and push of each image, averaged over the batch: associative embedding as HigherHRNet computes it."""
    pulls, pushes = [], []
    for image, people in zip(tags, points, strict=True):
        means, pull = [], []
        for person in people:
            own = [
                image[k, int(y), int(x)]
                for k, (x, y, v) in enumerate(person.tolist())
                if v > 0 and -1 < x < image.shape[2] and -1 < y < image.shape[1]
            ]
            if own:
                own = torch.stack(own)
                means.append(own.mean())
                pull.append(((own - own.mean()) ** 2).mean())
        n = len(means)
        pulls.append(torch.stack(pull).mean() if n else tags.sum() * 0)
        pairs = [torch.exp(-((a - b) ** 2)) for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
        pushes.append(0.5 * torch.stack(pairs).sum() / (n * (n - 1)) if n > 1 else tags.sum() * 0)
    return torch.stack(pulls).mean(), torch.stack(pushes).mean()


def by_the_book(s, t, data: ImageBatch, settings: SmallerHRNetSettings) -> Tensor:
    """L = alpha (L_mse + L_group) + (1 - alpha) (L_pd + L_gd), in float64."""
    s, t = [[x.double() for x in maps] for maps in (s, t)]
    heat_s, heat_t = ([maps[0][:, :K], maps[1]] for maps in (s, t))
    sigmas = [settings.sigma or maps.shape[-1] / 64 for maps in heat_s]
    labels = [
        gaussians(points, maps.shape[-1], sigma)
        for points, maps, sigma in zip(data.keypoints, heat_s, sigmas, strict=True)
    ]

    def mse(a, b, mask):
        return (mask[:, None] * (a - b) ** 2).mean()

    pd = [mse(*maps) for maps in zip(heat_s, heat_t, data.masks, strict=True)]
    l_mse = sum(mse(*maps) for maps in zip(heat_s, labels, data.masks, strict=True))
    pull, push = group_terms(s[0][:, K:], data.keypoints[0])
    squares = (s[0][:, K:] - t[0][:, K:]) ** 2
    l_gd = {"mean": squares.mean(), "paper": squares.sum() / B, "authors": B * pd[0]}[settings.tag_reduction]
    l_gd = l_gd * (1.0 if settings.tag_reduction == "authors" else settings.tag_weight) if settings.distil_tags else 0.0
    alpha = settings.alpha
    return alpha * (l_mse + settings.pull * pull + settings.push * push) + (1 - alpha) * (sum(pd) + l_gd)


SETTINGS = [
    {},
    {"tag_reduction": "paper"},
    {"tag_reduction": "authors"},
    {"distil_tags": False},
    {"distil_tags": False, "tag_reduction": "authors"},
    {"tag_weight": 0.001},
    {"tag_weight": 0.0},
    {"tag_weight": 0.001, "tag_reduction": "authors"},
    {"alpha": 0.5},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"sigma": None},
    {"pull": 0.5, "push": 0.25},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_the_loss_and_its_gradient_are_section_3_2(changes):
    settings = SmallerHRNetSettings(**changes)
    # a 64th of the heatmaps: 1 and 2 pixels at 256
    student, teacher, data = TinyBottomUp(1), TinyBottomUp(2), batch(side=SIDE if settings.sigma else 256)
    terms = SmallerHRNet(student, FrozenTeacher(teacher), settings)(data)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    gradients = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    with torch.no_grad():
        t = teacher.eval()(data.images)
    expected = by_the_book(student(data.images), t, data, settings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for ours, parameter in zip(gradients, student.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())
    assert set(terms) <= set(SmallerHRNet(student, FrozenTeacher(teacher), settings).weights())


def test_the_printed_sum_drowns_the_rest():
    """17 x 128 x 128 squares as a sum weigh 278,528 times what they weigh as a mean (here 3 x 16 x 16)."""
    data = batch()
    mean, paper = (
        SmallerHRNet(TinyBottomUp(1), FrozenTeacher(TinyBottomUp(2)), SmallerHRNetSettings(tag_reduction=kind))(data)
        for kind in ("mean", "paper")
    )
    assert paper["teacher_tags"].item() == pytest.approx(768 * mean["teacher_tags"].item(), rel=1e-5)
    assert paper["teacher_tags"] > 30 * (paper["labels"] + paper["teacher"])


def test_the_authors_code_distils_no_tags():
    """With their reduction the teacher's tags do not matter, and the coarse heatmaps weigh 1 + B times as much."""
    data, settings = batch(), SmallerHRNetSettings(tag_reduction="authors")
    teacher = TinyBottomUp(2)
    before = SmallerHRNet(TinyBottomUp(1), FrozenTeacher(teacher), settings)(data)
    teacher.coarse.weight.data[K:] += 1.0
    after = SmallerHRNet(TinyBottomUp(1), FrozenTeacher(teacher), settings)(data)
    assert "teacher_tags" not in before
    assert before["teacher"] == after["teacher"]


def test_teacher_modes():
    """Evaluation leaves the teacher's statistics; the authors' way uses those of the batch, and lets its own drift."""
    data = batch()
    values = {}
    for mode in ("eval", "train"):
        teacher = TinyBottomUp(2)
        method = SmallerHRNet(TinyBottomUp(1), FrozenTeacher(teacher), SmallerHRNetSettings(teacher_mode=mode))
        method.train()
        values[mode] = method(data)["teacher"].item()
        assert bool(teacher.bn.running_mean.any()) == (mode == "train")
        method.eval()
        assert teacher.training == (mode == "train")
    assert values["eval"] != values["train"]


def test_resolved_weights():
    method = SmallerHRNet(TinyBottomUp(1), FrozenTeacher(TinyBottomUp(2)))
    assert method.weights() == pytest.approx(
        {"labels": 0.9, "pull": 9e-4, "push": 9e-4, "teacher": 0.1, "teacher_tags": 0.1}
    )


def test_exact_labels_lie_where_the_parser_finds_them():
    """The parser adds half a pixel: a keypoint at 7.3 is drawn about 6.8, whole pixels and fractions alike."""
    data = batch(people=1)
    for points in data.keypoints:
        points[0, 0] = torch.tensor([7.3, 5.0, 2.0])
    heatmaps = [torch.zeros(B, K, 16, 16), torch.zeros(B, K, 32, 32)]
    for maps in label_heatmaps(heatmaps, data, AssociativeEmbeddingSettings(kind="exact")):
        x, y = torch.meshgrid(torch.arange(maps.shape[3]), torch.arange(maps.shape[2]), indexing="xy")
        expected = torch.exp(-((x - 6.8) ** 2 + (y - 4.5) ** 2) / 8)
        torch.testing.assert_close(maps[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("people", [1, 41])
def test_higherhrnets_own_loss(people):
    """Masked MSE of both resolutions, pull and push: also beyond 30 people."""
    student, data = TinyBottomUp(1), batch(people)
    terms = AssociativeEmbedding(student)(data)
    out = [maps.double() for maps in student(data.images)]
    heat = [out[0][:, :K], out[1]]
    labels = [gaussians(points, maps.shape[-1], 2.0) for points, maps in zip(data.keypoints, heat, strict=True)]
    mse = sum((m[:, None] * (a - g) ** 2).mean() for a, g, m in zip(heat, labels, data.masks, strict=True))
    pull, push = group_terms(out[0][:, K:], data.keypoints[0])
    assert terms["labels"].item() == pytest.approx(mse.item(), rel=1e-5)
    assert terms["pull"].item() == pytest.approx(1e-3 * pull.item(), rel=1e-4)
    assert terms["push"].item() == pytest.approx(1e-3 * push.item(), rel=1e-4)


def test_a_batch_with_nobody():
    data = batch()
    data.keypoints = [points * 0 for points in data.keypoints]
    terms = SmallerHRNet(TinyBottomUp(1), FrozenTeacher(TinyBottomUp(2)))(data)
    assert terms["pull"] == terms["push"] == 0
    assert all(math.isfinite(term.item()) for term in terms.values())


def test_a_teacher_of_another_size_and_colour_order_is_shown_the_same_pictures():
    """A teacher trained at 640 sees the student's 512; only colours and normalisation are converted."""
    data = batch()
    spec = InputSpec(size=(96, 96), mean=SPEC.mean[::-1], std=SPEC.std[::-1], bgr=True)
    teacher, other = TinyBottomUp(2), TinyBottomUp(2, spec)
    for name in ("coarse", "fine"):
        getattr(other, name).weight.data = getattr(teacher, name).weight.data.flip(1)
    other.bn.load_state_dict({k: v.flip(0) if v.ndim else v for k, v in teacher.bn.state_dict().items()})
    ours, theirs = (SmallerHRNet(TinyBottomUp(1), FrozenTeacher(t))(data) for t in (teacher, other))
    assert ours["teacher"].item() == pytest.approx(theirs["teacher"].item(), rel=1e-4)
    assert ours["teacher_tags"].item() == pytest.approx(theirs["teacher_tags"].item(), rel=1e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="distils from a teacher"):
        SmallerHRNet(TinyBottomUp(1), None)
    with pytest.raises(ValueError, match=r"alpha must be in 0\.\.1, got 1.5"):
        SmallerHRNetSettings(alpha=1.5)
    with pytest.raises(ValueError, match="tag_weight is a weight and cannot be negative, got -1"):
        SmallerHRNetSettings(tag_weight=-1.0)
    with pytest.raises(ValueError, match="sigma must be positive, or null"):
        AssociativeEmbeddingSettings(sigma=0.0)
    with pytest.raises(ValueError, match="must have the same keypoints"):
        SmallerHRNet(TinyBottomUp(1), FrozenTeacher(TinyBottomUp(2, keypoints=4)))(batch())
    wrong = nn.Conv2d(3, 3, 1)
    wrong.spec = SPEC
    with pytest.raises(ValueError, match=r"a bottom-up network gives .* and perhaps"):
        AssociativeEmbedding(wrong)(batch())
