"""`train.graph`: the step over fixed buffers, run as it is on the CPU and captured on a GPU, against the eager step."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_job import DropoutPose, NoiseLoader, losses, make_job
from helpers.tiny_pose import TinyPose, random_batch
from helpers.tiny_recipe import tiny_recipe

from posekd.distill import MAPD, FrozenTeacher, Method, Simple
from posekd.engine import build, distributed
from posekd.engine.training import checkpoint, graph
from posekd.engine.training.ema import Ema
from posekd.engine.training.graph import MOST_SHAPES, CapturedSteps
from posekd.engine.training.loop import fit, load_state_dict, seed_step
from posekd.engine.training.optim import OptimSettings, make_optimizer, set_rate
from posekd.engine.training.step import Learner, NonFiniteGradientError, NonFiniteLossError, train_step

pytestmark = pytest.mark.usefixtures("quick")
RATES = (2.0**-7, 2.0**-6, 2.0**-8)  # which float32 holds exactly, as the eager step's float64


def make_learner(kind="adam", precision="fp32", clip=None, captured=False, device="cpu"):
    torch.manual_seed(0)
    method = MAPD(DropoutPose(), FrozenTeacher(TinyPose(seed=1))).to(device)
    learner = Learner(
        method,
        make_optimizer(method.parameters(), OptimSettings(name=kind, lr=RATES[0], weight_decay=0.01), captured),
        torch.amp.GradScaler(device, enabled=precision == "fp16"),
        precision=precision,
        clip_norm=clip,
        ema=Ema(method.student, 0.9),
    )
    if captured:
        learner.captured = CapturedSteps(learner)
    return learner


def run(learner, count=5, accumulate=1, device="cpu"):
    """Some steps on batches of their own, and what each said."""
    said = []
    learner.method.train()
    for i in range(count):
        set_rate(learner.optimizer, RATES[i % len(RATES)])
        seed_step(0, i)
        batches = [random_batch(4, seed=10 * i + j) for j in range(accumulate)]
        moved = [build.map_tensors(batch, lambda x: x.to(device)) for batch in batches]
        said.append((learner.captured or train_step)(learner, moved))
    return said


def state(learner):
    """Everything that a step changes, but for the average."""
    slots = [
        {key: torch.as_tensor(value) for key, value in learner.optimizer.state[p].items() if value is not None}
        for p in learner.parameters
    ]
    return {
        **{name: x.cpu() for name, x in learner.method.state_dict().items()},
        **{f"{i}.{key}": x.cpu() for i, own in enumerate(slots) for key, x in own.items()},
        "step": torch.tensor(learner.step),
        "scale": torch.tensor(learner.scaler.get_scale()),
    }


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_has_the_eager_steps_bits(kind, precision, accumulate, clip):
    """Of the weights, the optimiser and the losses; the average is three operations in place of one."""
    eager, captured = (make_learner(kind, precision, clip, captured) for captured in (False, True))
    assert run(eager, accumulate=accumulate) == run(captured, accumulate=accumulate)
    for (name, one), other in zip(state(eager).items(), state(captured).values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(eager.ema.model.parameters(), captured.ema.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert eager.ema.updates == captured.ema.updates == 5


def test_the_buffers_stay_where_they_are():
    learner = make_learner(captured=True)
    run(learner, 1)
    (static,) = learner.captured.shapes.values()
    places = [x.data_ptr() for x in graph._tensors(static.batches[0])]
    run(learner, 3)
    assert [x.data_ptr() for x in graph._tensors(static.batches[0])] == places
    assert torch.equal(static.batches[0].images, random_batch(4, seed=20).images)


def captured_job(folder, **settings):
    job = make_job(folder, **settings)
    torch.manual_seed(0)
    job.learner.optimizer = make_optimizer(job.learner.method.parameters(), OptimSettings(lr=0.01), capturable=True)
    job.learner.captured = CapturedSteps(job.learner)
    return job


@pytest.mark.parametrize(("first", "second"), [(captured_job, captured_job), (captured_job, make_job)])
def test_a_killed_run_goes_on_with_and_without(tmp_path, first, second):
    """Bit for bit with; without, the learning rate has other digits than float32's."""
    whole, parts = first(tmp_path / "whole"), first(tmp_path / "parts", checkpoint_steps=1)
    fit(whole)
    original = parts.prepare

    def die(batch):
        if parts.learner.step == 8:
            raise MemoryError
        return original(batch)

    parts.prepare = die
    with pytest.raises(MemoryError):
        fit(parts)
    resumed = second(tmp_path / "parts")
    load_state_dict(resumed, checkpoint.load_latest(resumed.checkpoints)[1])
    fit(resumed)
    exact = first is second
    for (step, _, loss), (other_step, _, other) in zip(losses(whole), losses(resumed), strict=True):
        assert step == other_step
        assert loss == other if exact else loss == pytest.approx(other, rel=1e-4)
    for name, tensor in whole.learner.method.state_dict().items():
        other = resumed.learner.method.state_dict()[name]
        assert torch.equal(tensor, other) if exact else torch.allclose(tensor, other, rtol=1e-3, atol=1e-4), name


class Poisoned(NoiseLoader):
    def epoch(self, epoch=0, start=0):
        for i, batch in enumerate(super().epoch(epoch, start), start):
            if (epoch, i) == (0, 2):
                batch.images[1, 0, 0, 0] = float("nan")
            yield batch


def test_a_loss_that_is_not_finite_changes_nothing_and_is_named(tmp_path):
    job = captured_job(tmp_path, loader=Poisoned(), checkpoint_steps=1)
    with pytest.raises(NonFiniteLossError) as caught:
        fit(job)
    assert (caught.value.step, caught.value.sample_ids) == (2, [101])
    before = checkpoint.load_latest(job.checkpoints)[1]
    assert before["step"] == job.learner.step == 2
    for name, tensor in before["method"].items():
        assert "running" in name or "tracked" in name or torch.equal(tensor, job.learner.method.state_dict()[name])
    for name, tensor in before["ema"]["model"].items():
        now = job.learner.ema.model.state_dict()[name]
        assert "running" in name or "tracked" in name or torch.equal(tensor, now), name


def _steep(learner, slope):
    """From now on the gradient of the last bias is that."""
    learner.method.student.head.bias.register_hook(lambda gradient: torch.full_like(gradient, slope))


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_named_at_once():
    learner = make_learner(captured=True)
    run(learner, 2)
    before = state(learner)
    _steep(learner, math.inf)
    with pytest.raises(NonFiniteGradientError) as caught:
        run(learner, 1)
    assert (caught.value.step, caught.value.term) == (2, "gradient of student.head.bias")
    for (name, one), other in zip(before.items(), state(learner).values(), strict=True):
        assert "running" in name or "tracked" in name or torch.equal(one, other), name


def test_fp16_skips_are_ordinary():
    learner = make_learner(precision="fp16", captured=True)
    run(learner, 1)
    _steep(learner, math.inf)
    learner.max_skips = 3
    run(learner, 3)
    assert learner.scaler.get_scale() == 65536 / 2**3
    assert learner.skips == 3
    with pytest.raises(NonFiniteGradientError, match="4 times in a row"):
        run(learner, 1)


def test_a_fifth_shape_runs_eagerly(monkeypatch):
    learner = make_learner(captured=True)
    learner.method.train()
    eager = []
    monkeypatch.setattr(graph.eager, "train_step", lambda *args: eager.append(1) or train_step(*args))
    for count in (2, 3, 4, 5, 6, 3, 7):
        learner.captured(learner, [random_batch(count)])
    assert len(learner.captured.shapes) == MOST_SHAPES
    assert len(eager) == 2
    assert learner.step == 7


def test_a_method_that_counts_people_runs_eagerly():
    assert not Simple.fixed_shapes
    learner = make_learner(captured=True)
    learner.method.fixed_shapes = False
    assert run(learner, 2)
    assert learner.captured.shapes == {}


def recipe_of(folder):
    data = {"name": "synthetic", "images": 4}
    return tiny_recipe(folder, train_data=data, train={"epochs": 2, "graph": True, "validate_every": 0})


class TestARecipe:
    def test_of_a_top_down_student_trains_captured(self, tmp_path):
        job = build.build_job(recipe_of(tmp_path))
        fit(job)
        assert len(job.learner.captured.shapes) == 1
        assert job.learner.step == job.total_steps

    def test_is_refused_in_words(self, tmp_path, monkeypatch):
        recipe = recipe_of(tmp_path)
        with pytest.raises(ValueError, match="rmsprop has no fused kernel"):
            make_optimizer([], OptimSettings(name="rmsprop"), capturable=True)
        with pytest.raises(ValueError, match="needs a CUDA device, and this is mps"):
            build._check_graph(recipe, torch.device("mps"))
        foreign = SimpleNamespace(
            train=recipe.train, teacher=SimpleNamespace(name="onnx", path="teacher.onnx"), method_type=MAPD
        )
        with pytest.raises(ValueError, match="which ONNX Runtime runs: write a cache of it first; or set it to false"):
            build._check_graph(foreign, torch.device("cpu"))
        monkeypatch.setattr(distributed, "world", lambda: 2)
        with pytest.raises(ValueError, match="works in one process, and there are 2; or set it to false"):
            build._check_graph(recipe, torch.device("cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_replayed_graph_equals_the_eager_run_to_rounding(kind, precision, accumulate):
    eager, captured = (make_learner(kind, precision, 0.05, captured, "cuda") for captured in (False, True))
    said = [run(learner, 8, accumulate, "cuda") for learner in (eager, captured)]
    (static,) = captured.captured.shapes.values()
    assert static.graph is not None
    assert static.runs == 8
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for one, other in zip(*said, strict=True):
        assert one == pytest.approx(other, rel=tolerance)
    for (name, one), other in zip(state(eager).items(), state(captured).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_cannot_be_captured_is_said():
    class Looks(Method):
        def forward(self, batch):
            loss = self.student(batch.images).square().mean()
            return {"loss": loss * float(loss > 0)}

    learner = make_learner(captured=True, device="cuda")
    learner.method = learner.forward = Looks(learner.method.student)
    with pytest.raises(RuntimeError, match=r"a step of Looks cannot be captured .* set train\.graph to false"):
        run(learner, 4, device="cuda")
