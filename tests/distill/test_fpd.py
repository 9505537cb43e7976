"""FPD against its equations, computed here with NumPy in float64."""

import numpy as np
import pytest
import torch
from helpers.tiny_pose import TinyPose, random_batch

from posekd.distill import FPD, FPDSettings, FrozenTeacher, Supervised
from posekd.models import create_model
from posekd.ops import render_heatmaps


class Stages(torch.nn.Module):
    """A network of several stages, each a TinyPose."""

    def __init__(self, count: int, seed: int = 0, keypoints: int = 3) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList(TinyPose(seed=seed + i, keypoints=keypoints) for i in range(count))
        self.spec = self.stages[0].spec

    def forward(self, images):
        return [stage(images) for stage in self.stages]


def maps(network, batch) -> list[np.ndarray]:
    with torch.no_grad():
        output = network(batch.images)
    return [x.double().numpy() for x in (output if isinstance(output, list) else [output])]


def labels(batch) -> tuple[np.ndarray, np.ndarray]:
    """g, w; heatmap coordinates are input / 4."""
    g, w = render_heatmaps(batch.keypoints * torch.tensor([0.25, 0.25, 1.0]), (8, 6), sigma=2.0)
    return g.double().numpy(), w.double().numpy()


def mse(a, b, w):
    """Eq. 3 and 4 in the released form: half the mean over B, K, H, W, squared errors of weight w."""
    return 0.5 * np.mean(w[..., None, None] * (a - b) ** 2)


def values(terms) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


@pytest.fixture
def batch():
    batch = random_batch()
    assert 0 < labels(batch)[1].mean() < 1, "the batch must have labelled and unlabelled keypoints"
    return batch


def test_equations_3_to_5_for_networks_of_one_stage(batch):
    """HRNet-W48 to W32 is this case."""
    student, teacher = TinyPose(seed=0).eval(), TinyPose(seed=1).eval()
    (s,), (t,), (g, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    method = FPD(student, FrozenTeacher(teacher), FPDSettings(alpha=0.3))
    assert values(method(batch)) == pytest.approx(
        {"labels": 0.7 * mse(s, g, w), "teacher": 0.3 * mse(s, t, w)}, rel=1e-5
    )
    assert method.weights() == pytest.approx({"labels": 0.7, "teacher": 0.3})


def test_the_teachers_last_stage_teaches_every_stage_of_the_student(batch):
    student, teacher = Stages(2).eval(), Stages(3, seed=10).eval()
    ss, ts, (g, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    found = values(FPD(student, FrozenTeacher(teacher))(batch))
    expected = {
        "labels": 0.5 * sum(mse(s, g, w) for s in ss),
        "teacher": 0.5 * sum(mse(s, ts[-1], w) for s in ss),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_stage_by_stage(batch):
    student, teacher = Stages(2).eval(), Stages(2, seed=10).eval()
    ss, ts, (_, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    found = values(FPD(student, FrozenTeacher(teacher), FPDSettings(teacher_stage="matched"))(batch))
    assert found["teacher"] == pytest.approx(0.5 * sum(mse(s, t, w) for s, t in zip(ss, ts, strict=True)), rel=1e-5)
    with pytest.raises(ValueError, match="the teacher has 3 stages and the student 2"):
        FPD(student, FrozenTeacher(Stages(3)), FPDSettings(teacher_stage="matched"))(batch)


def test_the_teacher_may_teach_joints_that_have_no_label(batch):
    """The paper's argument for missing labels; the released code masks them."""
    student, teacher = TinyPose(seed=0).eval(), TinyPose(seed=1).eval()
    (s,), (t,), (g, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    found = values(FPD(student, FrozenTeacher(teacher), FPDSettings(masked=False))(batch))
    expected = {"labels": 0.5 * mse(s, g, w), "teacher": 0.5 * mse(s, t, np.ones_like(w))}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_unlabelled_persons_learn_from_the_teacher_alone(batch, masked, loss):
    """Two of four persons lose their labels: their loss is `unlabelled_weight` times the teacher's, all keypoints."""
    student, teacher = TinyPose(seed=0).eval(), TinyPose(seed=1).eval()
    settings = FPDSettings(alpha=0.4, masked=masked, loss=loss, unlabelled_weight=0.9)
    method = FPD(student, FrozenTeacher(teacher), settings)
    batch.keypoints[2:] = 0
    (s,), (t,), (g, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    assert (w[2:] == 0).all()
    share = 0.4 * (w if masked else np.ones_like(w))
    share[2:] = 0.9
    taught = mse(s, t, share) if loss == "mse" else entropy(s, t, share)
    assert values(method(batch)) == pytest.approx({"labels": 0.6 * mse(s, g, w), "teacher": taught}, rel=1e-5)


def entropy(s, t, w):
    """Cross entropy of L1-normalised positive maps, in the measure of the released MSE: over 2 H W."""
    p, q = (np.maximum(x, 1e-6).reshape(*x.shape[:2], -1) for x in (s, t))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return np.mean(w * -(q * np.log(p)).sum(-1)) / (2 * s.shape[-1] * s.shape[-2])


def test_cross_entropy_of_table_7(batch):
    student, teacher = Stages(2).eval(), TinyPose(seed=9).eval()
    ss, (t,), (g, w) = maps(student, batch), maps(teacher, batch), labels(batch)
    found = values(FPD(student, FrozenTeacher(teacher), FPDSettings(loss="cross_entropy"))(batch))
    expected = {
        "labels": 0.5 * sum(mse(s, g, w) for s in ss),
        "teacher": 0.5 * sum(entropy(s, t, w) for s in ss),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_alpha_0_is_plain_training_and_asks_no_teacher(batch):
    class Silent(TinyPose):
        def forward(self, images):
            raise AssertionError("asked")

    student = Stages(2).eval()
    found = values(FPD(student, FrozenTeacher(Silent()), FPDSettings(alpha=0.0))(batch))
    assert found == pytest.approx(values(Supervised(student)(batch)), rel=1e-6)


def test_alpha_1_needs_no_labels(batch):
    method = FPD(TinyPose().eval(), FrozenTeacher(TinyPose(seed=1)), FPDSettings(alpha=1.0))
    assert set(method(batch)) == {"teacher"}


def test_supervised_training_supervises_every_stage(batch):
    student = Stages(3).eval()
    g, w = labels(batch)
    expected = sum(mse(s, g, w) for s in maps(student, batch))
    assert Supervised(student)(batch)["labels"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_gradient_is_that_of_the_sum(batch, loss):
    """By central differences of the printed values: the named terms of a fused loss share one gradient."""
    student, batch.images = Stages(2).double().eval(), batch.images.double()
    batch.keypoints[3] = 0
    for stage in student.stages:
        stage.head.bias.data += 3.0  # away from the clamp, where the cross entropy has a kink
    method = FPD(student, FrozenTeacher(TinyPose(seed=1).double()), FPDSettings(loss=loss))
    total = lambda: sum(method(batch).values())  # noqa: E731
    total().backward()
    for stage in student.stages:
        weight, step = stage.head.weight, 1e-5
        for index in [(0, 0, 0, 0), (2, 5, 0, 0)]:
            with torch.no_grad():
                weight[index] += step
                above = total()
                weight[index] -= 2 * step
                below = total()
                weight[index] += step
            slope = ((above - below) / (2 * step)).item()
            assert weight.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_the_teacher_is_in_eval_mode_without_gradients_and_stays_as_it_was(batch):
    teacher = create_model("hourglass", 3, stages=2, width=8, size=(64, 64))
    student = create_model("hourglass", 3, stages=1, width=8, size=(64, 64))
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    method = FPD(student, FrozenTeacher(teacher)).train()
    sum(method(random_batch(spec=student.spec)).values()).backward()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, r"alpha must be in 0..1, because the labels weigh 1 - alpha; got 1.1"),
        ({"unlabelled_weight": -1.0}, "unlabelled_weight is a weight, 0 or more, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FPDSettings(**settings)


def test_what_does_not_fit_is_refused(batch):
    with pytest.raises(ValueError, match="fpd distils from a teacher, and none was given"):
        FPD(TinyPose(), None)
    with pytest.raises(ValueError, match="same keypoints"):
        FPD(TinyPose(), FrozenTeacher(TinyPose(keypoints=5)))(batch)
