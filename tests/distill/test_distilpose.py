"""DistilPose against its equations, computed here with NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_pose import SPEC, TinyPose, random_batch
from torch import nn

from posekd.codecs.coordinates import Coordinates
from posekd.codecs.heatmaps import TokenHeatmaps
from posekd.distill import CachedTeacher, DistilPose, DistilPoseSettings, FrozenTeacher
from posekd.distill.distilpose import regression_target, value_at
from posekd.models import create_model

K, D, N = 3, 4, 5
H, W = 8, 6  # of the teacher's heatmaps
ALL = ("labels", "simulated_heatmaps", "scores", "keypoint_tokens", "visual_tokens")
OFF = dict.fromkeys(ALL[1:], 0.0)
TINY = {"dim": 8, "heads": 2, "depth": 1, "hidden": 12, "stem_width": 4, "stem_blocks": 1, "size": (32, 24)}


class Saying(nn.Module):
    """A student that says the same, whatever it sees."""

    spec, gives_tokens, output = SPEC, True, "coordinates"

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.coords = nn.Parameter(torch.rand(count, K, 2, generator=g))
        self.scores = nn.Parameter(torch.randn(count, K, 1, generator=g))
        self.sigmas = nn.Parameter(torch.rand(count, K, 2, generator=g) * 2 + 0.5)
        self.keypoint_tokens = nn.Parameter(torch.randn(count, K, D, generator=g))
        self.visual_tokens = nn.Parameter(torch.randn(count, N, D, generator=g))

    def forward(self, images: torch.Tensor) -> Coordinates:
        return Coordinates(self.coords, self.scores, self.sigmas, self.keypoint_tokens, self.visual_tokens)


class Tokens(nn.Module):
    """A teacher of heatmaps and tokens."""

    spec, gives_tokens = SPEC, True

    def __init__(self, count: int, dim: int = D) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(9)
        self.said = TokenHeatmaps(
            torch.rand(count, K, H, W, generator=g),
            torch.randn(count, K, dim, generator=g),
            torch.randn(count, N, dim, generator=g),
        )
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> TokenHeatmaps:
        return self.said


def equations(student: Saying, teacher: TokenHeatmaps, keypoints: torch.Tensor) -> dict[str, float]:
    """The five terms, without their weights."""
    p, c, s, kt, vt = (x.detach().double().numpy() for x in student(torch.zeros(1)))
    T, KT, VT = (x.double().numpy() for x in teacher)
    points = keypoints.double().numpy()
    x, y, visibility = points[..., 0], points[..., 1], points[..., 2]
    w = ((visibility > 0) & (x >= 0) & (x <= 23) & (y >= 0) & (y <= 31)).astype(float)
    error = (p - np.stack((x / 24, y / 32), -1)) * w[..., None]
    column, row = np.arange(W), np.arange(H)[:, None]
    squared, looked_up = [], []
    for b in range(len(p)):
        for k in range(K):
            zx = (column - W * p[b, k, 0]) ** 2 / (s[b, k, 0] ** 2 + 1e-9)
            zy = (row - H * p[b, k, 1]) ** 2 / (s[b, k, 1] ** 2 + 1e-9)
            squared.append(((np.exp(-0.5 * (zx + zy)) - T[b, k]) ** 2).mean())
            looked_up.append(T[b, k, round(p[b, k, 1] * (H - 1)), round(p[b, k, 0] * (W - 1))])
    squared, looked_up = np.reshape(squared, w.shape), np.reshape(looked_up, w.shape)
    return {
        "labels": 0.5 * (error**2).mean(),  # no error reaches 1, where smooth L1 becomes linear
        "simulated_heatmaps": (w**2 * squared).mean(),
        "released": ((w**2).mean(0) * squared.mean(0)).mean(),
        "scores": np.abs(w * (c[..., 0] - looked_up)).mean(),
        "keypoint_tokens": ((kt - KT) ** 2).mean(),
        "visual_tokens": ((vt - VT) ** 2).mean(),
    }


def values(terms) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def test_the_five_terms():
    batch, student, teacher = random_batch(), Saying(4), Tokens(4)
    wanted = equations(student, teacher.said, batch.keypoints)
    weights = {"labels": 1.0, "simulated_heatmaps": 1.0, "scores": 0.01, "keypoint_tokens": 5e-4, "visual_tokens": 5e-4}
    method = DistilPose(student, FrozenTeacher(teacher))
    assert method.weights() == weights  # the paper's
    assert values(method(batch)) == pytest.approx({name: weights[name] * wanted[name] for name in ALL}, rel=1e-5)


def test_the_released_joint_weights():
    batch, student, teacher = random_batch(), Saying(4), Tokens(4)
    wanted = equations(student, teacher.said, batch.keypoints)
    assert wanted["released"] != pytest.approx(wanted["simulated_heatmaps"], rel=0.01)
    method = DistilPose(student, FrozenTeacher(teacher), DistilPoseSettings(joint_weights="released"))
    assert values(method(batch))["simulated_heatmaps"] == pytest.approx(wanted["released"], rel=1e-5)


@pytest.mark.parametrize("term", ALL)
def test_a_term_of_weight_0_is_left_out(term):
    terms = DistilPose(Saying(4), FrozenTeacher(Tokens(4)), DistilPoseSettings(**{term: 0.0}))(random_batch())
    assert set(terms) == set(ALL) - {term}


def test_each_term_has_its_own_gradient():
    """Confidences learn from L_SW alone, which moves no coordinate."""
    for term, learning in {
        "labels": {"coords"},
        "simulated_heatmaps": {"coords", "sigmas"},
        "scores": {"scores"},
        "keypoint_tokens": {"keypoint_tokens"},
        "visual_tokens": {"visual_tokens"},
    }.items():
        student = Saying(4)
        DistilPose(student, FrozenTeacher(Tokens(4)))(random_batch())[term].backward()
        moved = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == learning, term


def test_plain_regression_needs_no_teacher():
    student = create_model("distilpose_s", K, scores=False, sigmas=False, **TINY)
    method = DistilPose(student, None, DistilPoseSettings(**OFF))
    terms = method(random_batch())
    assert set(terms) == {"labels"}
    with pytest.raises(ValueError, match=r"none was given \(plain regression needs none: set method\.simul"):
        DistilPose(student, None)


def test_any_heatmap_model_may_teach():
    """Without tokens their terms are off, which is said; a cache of heatmaps is such a teacher too."""
    batch = random_batch()
    with pytest.warns(UserWarning, match="the teacher gives no tokens, so nothing is learnt from tokens"):
        method = DistilPose(Saying(4), FrozenTeacher(TinyPose(keypoints=K)))
    assert set(method(batch)) == set(method.weights()) == {"labels", "simulated_heatmaps", "scores"}
    with pytest.warns(UserWarning, match="the teacher gives no tokens"):
        cached = DistilPose(Saying(4), CachedTeacher())
    batch.teacher_maps = Tokens(4).said.heatmaps
    live = DistilPose(Saying(4), FrozenTeacher(Tokens(4)))(random_batch())
    assert values(cached(batch)) == {name: value for name, value in values(live).items() if "tokens" not in name}


def test_tokens_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"keypoint tokens are \(4, 3, 4\), the teacher's \(4, 3, 6\)"):
        DistilPose(Saying(4), FrozenTeacher(Tokens(4, dim=6)))(random_batch())


def test_what_the_student_does_not_say_cannot_be_taught():
    teacher = FrozenTeacher(Tokens(4))
    without = create_model("distilpose_s", K, sigmas=False, **TINY)
    with pytest.raises(ValueError, match=r"method\.simulated_heatmaps needs a student that says sigmas"):
        DistilPose(without, teacher)
    with pytest.raises(ValueError, match=r"method\.scores is 0, so nothing would train the student's scores"):
        DistilPose(create_model("distilpose_s", K, **TINY), teacher, DistilPoseSettings(scores=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": -1.0}, "scores is a weight, 0 or more, got -1.0"),
        ({"labels": 0.0, **OFF}, "all weights are 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        DistilPoseSettings(**settings)


def test_targets_beyond_the_crop_do_not_count():
    keypoints = torch.tensor(
        [[[0.0, 31.0, 2.0], [23.0, 0.0, 1.0], [23.1, 5.0, 2.0], [5.0, -0.1, 2.0], [4.0, 4.0, 0.0]]]
    )
    target, weight = regression_target(keypoints, (32, 24))
    assert weight.tolist() == [[1, 1, 0, 0, 0]]
    assert target[0, :2].tolist() == pytest.approx(np.array([[0, 31 / 32], [23 / 24, 0]]))


def test_the_teachers_value_at_a_keypoint():
    """Pixel (round((W - 1) x), round((H - 1) y)), half to even; outside the crop 0."""
    maps = torch.arange(12.0).view(1, 1, 3, 4).expand(1, 5, 3, 4)
    coords = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.01, 0.5], [0.5, -0.01]]])
    assert value_at(maps, coords).tolist() == [[0.0, 11.0, 6.0, 0.0, 0.0]]  # 1.5 is rounded to 2


def test_the_released_models_train_together():
    torch.manual_seed(0)
    student, teacher = create_model("distilpose_s", K, **TINY), create_model("distilpose_teacher_stem", K, **TINY)
    terms = DistilPose(student, FrozenTeacher(teacher))(random_batch())
    sum(terms.values()).backward()
    assert set(terms) == set(ALL)
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
