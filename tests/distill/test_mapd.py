"""MAPD against its equations, computed here with NumPy in float64."""

import numpy as np
import pytest
import torch
from helpers.tiny_pose import TinyPose, random_batch

from posekd.distill import MAPD, FrozenTeacher, MAPDSettings, Supervised
from posekd.ops import render_heatmaps


def heatmaps_and_labels(batch, student, teacher):
    """s, t, g, w in float64: heatmap coordinates are input / 4."""
    with torch.no_grad():
        s, t = student(batch.images), teacher(batch.images)
    keypoints = batch.keypoints * torch.tensor([0.25, 0.25, 1.0])
    g, w = render_heatmaps(keypoints, (8, 6), sigma=2.0)
    return tuple(x.double().numpy() for x in (s, t, g, w))


def mse(a, b, w):
    """Eq. 1 and 3, in HRNet's form."""
    return 0.5 * np.mean((w[..., None, None] * (a - b)) ** 2)


def kl(t, s, w, temperature=1.0):
    """Eq. 2 on q = softmax over the pixels of a map."""
    flat_t, flat_s = (x.reshape(*x.shape[:2], -1) / temperature for x in (t, s))
    q_t, q_s = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (flat_t, flat_s))
    return temperature**2 * np.mean(w * (q_t * np.log(q_t / q_s)).sum(-1))


@pytest.fixture
def setting():
    student, teacher, batch = TinyPose(seed=0).eval(), TinyPose(seed=1).eval(), random_batch()
    return student, teacher, batch, heatmaps_and_labels(batch, student, teacher)


def test_the_three_terms_are_equations_1_to_3_weighted_as_equation_4(setting):
    student, teacher, batch, (s, t, g, w) = setting
    assert 0 < w.mean() < 1, "the batch must have labelled and unlabelled keypoints"
    terms = MAPD(student, FrozenTeacher(teacher))(batch)
    expected = {"labels": 0.775 * mse(s, g, w), "teacher_mse": 0.15 * mse(s, t, w), "teacher_kl": 0.075 * kl(t, s, w)}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_the_published_weights_are_the_defaults(setting):
    student, teacher, *_ = setting
    assert MAPD(student, FrozenTeacher(teacher)).weights() == pytest.approx(
        {"labels": 0.775, "teacher_mse": 0.15, "teacher_kl": 0.075}
    )


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (MAPDSettings(beta=0.0), {"labels", "teacher_mse"}),
        (MAPDSettings(alpha=0.0), {"labels", "teacher_kl"}),
        (MAPDSettings(alpha=0.9, beta=0.1), {"teacher_mse", "teacher_kl"}),
    ],
)
def test_ablations_drop_their_term(setting, settings, names):
    student, teacher, batch, _ = setting
    assert set(MAPD(student, FrozenTeacher(teacher), settings)(batch)) == names


def test_temperature_softens_the_divergence_and_keeps_its_scale(setting):
    student, teacher, batch, (s, t, _, w) = setting
    terms = MAPD(student, FrozenTeacher(teacher), MAPDSettings(temperature=3.0))(batch)
    assert terms["teacher_kl"].item() == pytest.approx(0.075 * kl(t, s, w, temperature=3.0), rel=1e-4)


def test_clamped_kl_is_equation_2_by_the_letter(setting):
    student, teacher, batch, (s, t, g, w) = setting
    terms = MAPD(student, FrozenTeacher(teacher), MAPDSettings(kl="clamped"))(batch)
    positive_t, positive_s = np.maximum(t, 1e-6), np.maximum(s, 1e-6)
    literal = np.mean(w * (positive_t * np.log(positive_t / positive_s)).sum((-2, -1)))
    expected = {"labels": 0.775 * mse(s, g, w), "teacher_mse": 0.15 * mse(s, t, w), "teacher_kl": 0.075 * literal}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["spatial_softmax", "clamped"])
def test_unlabelled_persons_learn_from_the_teacher_alone(kind):
    """Two of four persons lose their labels: w_k = sqrt(0.6 / 0.15) = 2 for all of their keypoints in Eq. 1 and 2."""
    student, teacher, batch = TinyPose(seed=0).eval(), TinyPose(seed=1).eval(), random_batch()
    batch.keypoints[2:] = 0
    s, t, g, w = heatmaps_and_labels(batch, student, teacher)
    taught = w.copy()
    taught[2:] = 2
    positive_t, positive_s = np.maximum(t, 1e-6), np.maximum(s, 1e-6)
    literal = np.mean(taught * (positive_t * np.log(positive_t / positive_s)).sum((-2, -1)))
    divergence = kl(t, s, taught) if kind == "spatial_softmax" else literal
    terms = MAPD(student, FrozenTeacher(teacher), MAPDSettings(kl=kind, unlabelled_weight=0.6))(batch)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"labels": 0.775 * mse(s, g, w), "teacher_mse": 0.15 * mse(s, t, taught), "teacher_kl": 0.075 * divergence},
        rel=1e-5,
    )


def test_unlabelled_changes_nothing_where_everybody_has_labels(setting):
    student, teacher, batch, _ = setting
    with_it, without = (
        MAPD(student, FrozenTeacher(teacher), MAPDSettings(unlabelled_weight=value))(batch) for value in (1.0, 0.0)
    )
    assert with_it.keys() == without.keys()
    for name, term in with_it.items():
        assert term.item() == pytest.approx(without[name].item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["spatial_softmax", "clamped"])
def test_the_gradient_is_that_of_the_sum(kind):
    """By central differences of the printed values: the named terms of a fused loss share one gradient."""
    student, teacher, batch = TinyPose(seed=0).eval(), TinyPose(seed=1).eval(), random_batch()
    student, batch.images = student.double(), batch.images.double()
    student.head.bias.data += 3.0  # away from the clamp, where the literal divergence has a kink
    method = MAPD(student, FrozenTeacher(teacher.double()), MAPDSettings(kl=kind))
    loss = lambda: sum(method(batch).values())  # noqa: E731
    loss().backward()
    weight = student.head.weight
    for index in [(0, 0, 0, 0), (1, 3, 0, 0), (2, 5, 0, 0)]:
        step = 1e-5
        with torch.no_grad():
            weight[index] += step
            above = loss()
            weight[index] -= 2 * step
            below = loss()
            weight[index] += step
        assert weight.grad[index].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5, abs=1e-9)


def test_supervised_is_the_label_term_alone(setting):
    student, _, batch, (s, _, g, w) = setting
    assert Supervised(student)(batch)["labels"].item() == pytest.approx(mse(s, g, w), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.8, "beta": 0.3}, "sum to at most 1"),
        ({"alpha": -0.1}, ">= 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"unlabelled_weight": -1.0}, "unlabelled_weight must be 0 or more, .*; got -1.0 and alpha 0.15"),
        ({"alpha": 0.0, "unlabelled_weight": 1.0}, "above 0 only with an alpha above 0; got 1.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MAPDSettings(**settings)


def test_no_teacher_is_refused(setting):
    with pytest.raises(ValueError, match="none was given"):
        MAPD(setting[0], None)


def test_a_teacher_of_other_keypoints_is_refused():
    method = MAPD(TinyPose(), FrozenTeacher(TinyPose(keypoints=5)))
    with pytest.raises(ValueError, match="same keypoints"):
        method(random_batch())


def test_a_student_of_several_stages_is_sent_to_fpd():
    class Stages(TinyPose):
        def forward(self, images):
            return [super().forward(images)] * 2

    with pytest.raises(ValueError, match="mapd is for networks of one stage, this student has 2; fpd distils such"):
        MAPD(Stages(), FrozenTeacher(TinyPose()))(random_batch())
