"""The loop on a tiny network: exact resume, accumulation, non-finite losses, validation, the files of a run."""

import json
import signal

import pytest
import torch
from helpers.tiny_job import NoiseLoader, losses, make_job
from helpers.tiny_pose import SPEC, TinyPose, random_batch

from posekd.distill import Supervised
from posekd.engine.progress import read_log
from posekd.engine.training import checkpoint, loop
from posekd.engine.training.loop import fit, load_state_dict
from posekd.engine.training.step import Learner, NonFiniteLossError, train_step
from posekd.viz.curves import plot_curves

pytestmark = pytest.mark.usefixtures("quick")


def weights(job):
    return {**job.learner.method.state_dict(), **{f"ema.{k}": v for k, v in job.learner.ema.model.state_dict().items()}}


@pytest.mark.parametrize("killed_at", [1, 6, 8, 12, 17])
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, killed_at):
    """In the middle of an epoch, at its end, at its end with a validation due."""
    whole = make_job(tmp_path / "whole")
    fit(whole)

    class KilledError(Exception):
        pass

    first = make_job(tmp_path / "parts", checkpoint_steps=1)
    original = first.prepare

    def die_after(batch):
        if first.learner.step == killed_at:
            raise KilledError
        return original(batch)

    first.prepare = die_after
    with pytest.raises(KilledError):
        fit(first)

    torch.manual_seed(999)  # a new process has another random state
    second = make_job(tmp_path / "parts")
    torch.manual_seed(12345)
    path, state = checkpoint.load_latest(second.checkpoints)
    assert path == checkpoint.checkpoint_path(second.checkpoints, killed_at)
    load_state_dict(second, state)
    fit(second)
    assert losses(second) == losses(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(second)[name]), name
    assert second.best == whole.best


def test_the_random_state_matters_in_that_test(tmp_path):
    """Guard: with dropout, other random numbers give other weights, so the test above would notice."""
    one, other = make_job(tmp_path / "1"), make_job(tmp_path / "2")
    other.seed = 1
    fit(one)
    fit(other)
    assert not torch.equal(weights(one)["student.conv.weight"], weights(other)["student.conv.weight"])


def test_two_accumulated_halves_step_like_one_batch():
    """The mean over B splits into equal halves; the network has no batch norm in training mode here."""
    whole = random_batch(4, seed=3)
    halves = [whole.rows(rows) for rows in (slice(0, 2), slice(2, 4))]
    results = []
    for batches in ([whole], halves):
        method = Supervised(TinyPose().eval())
        learner = Learner(
            method, torch.optim.SGD(method.parameters(), lr=1.0), torch.amp.GradScaler("cpu", enabled=False)
        )
        loss = train_step(learner, batches)["loss"]
        results.append((loss, method.student.conv.weight.detach().clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)


class PoisonedLoader(NoiseLoader):
    """The third batch of the first epoch holds a NaN pixel in one person."""

    def epoch(self, epoch=0, start=0):
        for i, batch in enumerate(super().epoch(epoch, start), start):
            if (epoch, i) == (0, 2):
                batch.images[1, 0, 0, 0] = float("nan")
            yield batch


def test_a_non_finite_loss_stops_before_the_update_and_names_step_term_and_samples(tmp_path):
    job = make_job(tmp_path, loader=PoisonedLoader())
    with pytest.raises(NonFiniteLossError) as caught:
        fit(job)
    error = caught.value
    assert (error.step, error.sample_ids) == (2, [101]), "the one person whose image holds the NaN"
    assert error.term in {"labels", "teacher_mse", "teacher_kl"}
    assert "step 2" in str(error)
    assert "because of the annotations 101" in str(error)
    path = tmp_path / "checkpoints" / "nonfinite_000000002.safetensors"
    assert str(path) in str(error)
    saved = checkpoint.load_state(path)
    assert saved["step"] == 2
    assert all(torch.isfinite(t).all() for n, t in saved["method"].items() if "running" not in n), (
        "the weights are those of the last good step"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains(tmp_path, precision):
    job = make_job(tmp_path, loader=NoiseLoader(steps=8), precision=precision, epochs=4, validate_every=0)
    fit(job)
    curve = [loss for _, _, loss in losses(job)]
    assert sum(curve[-8:]) < 0.8 * sum(curve[:8])
    assert job.learner.parameters[0].dtype == torch.float32


def test_validation_keeps_the_best_network_and_always_comes_at_the_end(tmp_path):
    scores = iter([0.3, 0.7, 0.5])
    job = make_job(tmp_path, epochs=5)
    job.validate = lambda model: {"AP": next(scores)}
    assert fit(job) == {"AP": 0.5}
    validated = [r["epoch"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "validation"]
    assert validated == [2, 4, 5]
    assert json.loads((tmp_path / "best.safetensors").read_text())["epoch"] == 4
    assert json.loads((tmp_path / "last.safetensors").read_text())["metrics"] == {"AP": 0.5}


def test_the_curves_are_drawn_from_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "plot_curves", plot_curves)
    fit(make_job(tmp_path))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_of_a_run(tmp_path, capsys):
    job = make_job(tmp_path, keep_checkpoints=2)
    fit(job)
    assert [p.name for p in checkpoint.list_checkpoints(job.checkpoints)] == [
        "step_000000012.safetensors",
        "step_000000018.safetensors",
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    records = read_log(tmp_path / "log.jsonl")
    assert records[0]["weights"] == pytest.approx({"labels": 0.775, "teacher_mse": 0.15, "teacher_kl": 0.075})
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 19))
    assert {"labels", "teacher_mse", "teacher_kl", "loss", "lr", "samples_per_s", "data_wait"} <= set(train[0])
    printed = capsys.readouterr().err
    assert "loss = 0.775 labels + 0.15 teacher_mse + 0.075 teacher_kl" in printed
    assert "samples/s" in printed
    assert "left " in printed


def test_a_signal_lets_the_step_finish_saves_and_resumes_exactly(tmp_path):
    whole = make_job(tmp_path / "whole")
    fit(whole)
    job = make_job(tmp_path / "parts")
    original = job.prepare

    def interrupt(batch):
        if job.learner.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return original(batch)

    job.prepare = interrupt
    with pytest.raises(KeyboardInterrupt, match="after step 8; the state is saved"):
        fit(job)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = make_job(tmp_path / "parts")
    load_state_dict(resumed, checkpoint.load_latest(resumed.checkpoints)[1])
    fit(resumed)
    assert losses(resumed) == losses(whole)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    job = make_job(tmp_path, epochs=1)
    fit(job)
    other = make_job(tmp_path / "other", method=Supervised(TinyPose(keypoints=5)))
    with pytest.raises(ValueError, match="another architecture"):
        load_state_dict(other, checkpoint.load_latest(job.checkpoints)[1])
    plain = make_job(tmp_path / "plain", ema=None)
    with pytest.raises(ValueError, match="ema_decay"):
        load_state_dict(plain, checkpoint.load_latest(job.checkpoints)[1])


def test_too_few_batches_for_one_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 batches .*accumulate 3"):
        fit(make_job(tmp_path, loader=NoiseLoader(steps=2), accumulate=3))


def test_tiny_pose_has_the_heatmaps_that_the_losses_expect():
    assert TinyPose()(random_batch(2).images).shape == (2, 3, SPEC.size[0] // 4, SPEC.size[1] // 4)
