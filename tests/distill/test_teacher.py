"""The teacher: frozen, invisible to the optimiser and the checkpoint, and shown what it was trained on."""

import pytest
import torch
from helpers.tiny_pose import SPEC, TinyPose, random_batch

from posekd.distill import MAPD, FrozenTeacher
from posekd.distill.base import input_spec
from posekd.distill.convert import convert_images, resample
from posekd.structures import InputSpec


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_training_leaves_the_teacher_untouched():
    teacher = TinyPose(seed=1)
    method = MAPD(TinyPose(), FrozenTeacher(teacher))
    before, student_before = snapshot(teacher), snapshot(method.student)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.train()
    for seed in range(3):
        sum(method(random_batch(seed=seed)).values()).backward()
        optimizer.step()
    assert not teacher.training, "train() of the method must not reach the teacher's batch norm"
    for name, tensor in snapshot(teacher).items():
        assert torch.equal(tensor, before[name]), name
    assert any(not torch.equal(t, student_before[n]) for n, t in snapshot(method.student).items())


def test_neither_parameters_nor_state_dict_hold_the_teacher():
    method = MAPD(TinyPose(), FrozenTeacher(TinyPose(seed=1)))
    assert {name.split(".")[0] for name in method.state_dict()} == {"student"}
    assert len(list(method.parameters())) == len(list(method.student.parameters()))


def test_the_teacher_moves_with_the_method_and_keeps_its_dtype():
    kept = MAPD(TinyPose(), FrozenTeacher(TinyPose(seed=1), torch.bfloat16)).double()
    assert kept.teacher.model.conv.weight.dtype == torch.bfloat16
    assert kept.student.conv.weight.dtype == torch.float64
    moved = MAPD(TinyPose(), FrozenTeacher(TinyPose(seed=1))).to("meta")
    assert moved.teacher.model.conv.weight.device.type == "meta"


def test_a_teacher_in_bfloat16_gives_nearly_the_same_loss():
    student, batch = TinyPose(), random_batch()
    exact = sum(MAPD(student, FrozenTeacher(TinyPose(seed=1)))(batch).values())
    rough = sum(MAPD(student, FrozenTeacher(TinyPose(seed=1), torch.bfloat16))(batch).values())
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)
    assert rough.item() != exact.item()


def test_a_bgr_teacher_with_other_normalisation_sees_the_same_picture():
    """Both specifications, applied to one 0..255 image by hand, are what the conversion turns into each other."""
    theirs = InputSpec(size=SPEC.size, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25), bgr=True)
    pixels = torch.rand(2, 3, *SPEC.size, dtype=torch.float64)
    ours = (pixels - torch.tensor(SPEC.mean).double()[:, None, None]) / torch.tensor(SPEC.std).double()[:, None, None]
    expected = (pixels.flip(1) - torch.tensor([0.1, 0.2, 0.3]).double()[:, None, None]) / torch.tensor(
        [1.0, 0.5, 0.25]
    ).double()[:, None, None]
    torch.testing.assert_close(convert_images(ours, SPEC, theirs), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(convert_images(expected, theirs, SPEC), ours, rtol=1e-6, atol=1e-6)


def test_equal_specifications_cost_nothing():
    images = torch.rand(1, 3, *SPEC.size)
    assert convert_images(images, SPEC, SPEC) is images


@pytest.mark.parametrize("size", [(64, 48), (16, 12), (40, 30)])
def test_resampling_moves_no_coordinate(size):
    """Pixel i of the output is at i * in / out of the input: a linear ramp stays the ramp, without half a pixel."""
    H, W = 32, 24
    ramp = torch.arange(W, dtype=torch.float32).expand(1, 1, H, W) + 100 * torch.arange(H)[:, None]
    out = resample(ramp, size)[0, 0]
    x = (torch.arange(size[1]) * (W / size[1])).clamp(max=W - 1)
    y = (torch.arange(size[0]) * (H / size[0])).clamp(max=H - 1)
    torch.testing.assert_close(out, x.expand(size) + 100 * y[:, None], rtol=1e-5, atol=1e-2)


def test_a_larger_teacher_sees_larger_crops_and_answers_in_the_students_pixels():
    large = InputSpec(size=(64, 48))
    seen = []

    class Watching(TinyPose):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return super().forward(images)

    method = MAPD(TinyPose(), FrozenTeacher(Watching(spec=large, seed=1)))
    method(random_batch())
    assert seen == [(4, 3, 64, 48)]


def test_another_aspect_ratio_is_refused():
    method = MAPD(TinyPose(), FrozenTeacher(TinyPose(spec=InputSpec(size=(32, 32)))))
    with pytest.raises(ValueError, match=r"32x24.*32x32.*aspect"):
        method(random_batch())


def test_a_network_without_a_specification_is_refused():
    with pytest.raises(TypeError, match="Linear has no attribute `spec"):
        input_spec(torch.nn.Linear(1, 1))
