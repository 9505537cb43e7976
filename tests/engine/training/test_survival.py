"""What stops a run before its end, and what it leaves behind: bad numbers, full disks, lost data, signals."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.coco_folder import labels, person, write
from helpers.tiny_job import DropoutPose, NoiseLoader, losses, make_job
from helpers.tiny_recipe import tiny_recipe

import posekd
from posekd.data import BadImageError
from posekd.distill import Method, Supervised
from posekd.engine.train import train
from posekd.engine.training import checkpoint, loop
from posekd.engine.training.loop import fit, load_state_dict
from posekd.engine.training.step import NonFiniteGradientError
from posekd.engine.training.stopping import LoadingError

pytestmark = pytest.mark.usefixtures("quick")


class Edge(torch.autograd.Function):
    """0, whose derivative is as steep as one likes."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope, ctx.shape = slope, x.shape
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, grad):
        return (grad * ctx.slope).expand(ctx.shape), None


class Cliff(Method):
    """Plain training, and from one call on a second term that is 0 and has the given slope."""

    def __init__(self, at, slope):
        super().__init__(DropoutPose())
        self.labels, self.calls, self.at, self.slope = Supervised(self.student), 0, at, slope

    def forward(self, batch):
        self.calls += 1
        terms = self.labels(batch)
        if self.calls > self.at:
            terms["cliff"] = Edge.apply(self.student.head.bias, self.slope)
        return terms

    def weights(self):
        return {"labels": 1.0}


class TestGradients:
    @pytest.mark.parametrize("fused", [True, False])
    def test_one_that_is_not_finite_stops_the_run_before_it_changes_a_weight(self, tmp_path, fused):
        """The third step's; the fused optimiser skips on the device and is told of one step later."""
        job = make_job(tmp_path, method=Cliff(2, float("inf")), checkpoint_steps=1)
        if not fused:
            job.learner.optimizer = torch.optim.Adam(job.learner.parameters, lr=0.01)
        with pytest.raises(NonFiniteGradientError) as caught:
            fit(job)
        error = caught.value
        assert (error.step, error.term, error.sample_ids) == (2, "gradient of student.head.bias", [100, 101, 102, 103])
        assert "step 2: the gradient of student.head.bias is not finite, although the loss is" in str(error)
        path = tmp_path / "checkpoints" / "nonfinite_000000002.safetensors"
        assert str(path) in str(error)
        saved, before = checkpoint.load_state(path), checkpoint.load_latest(job.checkpoints)[1]
        assert saved["step"] == before["step"] == 2
        for name, tensor in before["method"].items():
            assert "running" in name or "tracked" in name or torch.equal(tensor, saved["method"][name]), name
        assert all(
            torch.equal(t, saved["optimizer"]["state"][i][k])
            for i, slots in before["optimizer"]["state"].items()
            for k, t in slots.items()
        )

    def test_the_last_step_is_looked_at_too(self, tmp_path):
        with pytest.raises(NonFiniteGradientError, match="step 17"):
            fit(make_job(tmp_path, method=Cliff(17, float("nan")), validate_every=0))

    def test_clipping_does_not_hide_it(self, tmp_path):
        job = make_job(tmp_path, method=Cliff(2, float("nan")))
        job.learner.clip_norm = 0.1
        with pytest.raises(NonFiniteGradientError, match="step 2"):
            fit(job)

    def test_fp16_skips_are_ordinary(self, tmp_path):
        """A slope of 1e36 overflows float32 at the scaler's first 65536 and fits after eight halvings."""
        job = make_job(tmp_path, method=Cliff(0, 1e36), precision="fp16", validate_every=0)
        fit(job)
        assert job.learner.scaler.get_scale() == 65536 / 2**8
        assert job.learner.skips == 0

    @pytest.mark.parametrize("killed_at", [4, 12])
    def test_fp16_resumes_bit_for_bit_in_the_middle_of_the_skips_and_after(self, tmp_path, killed_at):
        """A scaler that began anew would skip eight more steps."""
        whole = make_job(tmp_path / "whole", method=Cliff(0, 1e36), precision="fp16")
        fit(whole)
        first = make_job(tmp_path / "parts", method=Cliff(0, 1e36), precision="fp16", checkpoint_steps=1)
        original = first.prepare

        def die(batch):
            if first.learner.step == killed_at:
                raise MemoryError
            return original(batch)

        first.prepare = die
        with pytest.raises(MemoryError):
            fit(first)
        second = make_job(tmp_path / "parts", method=Cliff(0, 1e36), precision="fp16")
        load_state_dict(second, checkpoint.load_latest(second.checkpoints)[1])
        assert second.learner.scaler.get_scale() == 65536 / 2 ** min(killed_at, 8)
        fit(second)
        assert losses(second) == losses(whole)
        assert second.learner.scaler.state_dict() == whole.learner.scaler.state_dict()
        for name, tensor in whole.learner.method.state_dict().items():
            assert torch.equal(tensor, second.learner.method.state_dict()[name]), name

    def test_a_run_of_fp16_skips_is_an_error(self, tmp_path):
        job = make_job(tmp_path, method=Cliff(5, float("inf")), precision="fp16", validate_every=0)
        job.learner.max_skips = 4
        with pytest.raises(
            NonFiniteGradientError, match=r"5 times in a row .*come down to 2048; train in bf16"
        ) as caught:
            fit(job)
        assert caught.value.step == 9
        assert "nonfinite_000000009" in str(caught.value)

    def test_the_count_of_skips_survives_a_resume(self, tmp_path):
        first = make_job(tmp_path, method=Cliff(5, float("inf")), precision="fp16", validate_every=0, epochs=2)
        fit(first)
        second = make_job(tmp_path, method=Cliff(0, float("inf")), precision="fp16", validate_every=0)
        load_state_dict(second, checkpoint.load_latest(second.checkpoints)[1])
        assert second.learner.skips == 7
        second.learner.max_skips = 8
        with pytest.raises(NonFiniteGradientError, match="step 13"):
            fit(second)


def full_when(condition, original):
    """The function, failing as on a full disk while the condition on its arguments holds."""

    def call(*args, **kwargs):
        if condition(*args):
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    return call


class TestDisk:
    def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(self, tmp_path, monkeypatch):
        job = make_job(tmp_path, checkpoint_steps=1, keep_checkpoints=3)
        failing = full_when(lambda *_: job.learner.step > 4, checkpoint.save_file)
        monkeypatch.setattr(checkpoint, "save_file", failing)
        with pytest.raises(OSError, match=r"step_000000005.*No space left.*last checkpoint is .*step_000000004"):
            fit(job)
        names = [path.name for path in job.checkpoints.iterdir()]
        assert names == ["step_000000004.safetensors"], "older ones made room, nothing half-written lies about"

    def test_older_checkpoints_make_room(self, tmp_path, monkeypatch):
        job = make_job(tmp_path, checkpoint_steps=1, keep_checkpoints=3)
        failing = full_when(lambda *_: len(checkpoint.list_checkpoints(job.checkpoints)) > 1, checkpoint.save_file)
        monkeypatch.setattr(checkpoint, "save_file", failing)
        fit(job)
        assert checkpoint.list_checkpoints(job.checkpoints)[-1].name == "step_000000018.safetensors"

    def test_a_log_that_cannot_be_written_stops_the_run_and_the_state_is_saved(self, tmp_path, monkeypatch):
        job = make_job(tmp_path)
        monkeypatch.setattr(loop.RunLog, "write", full_when(lambda log, kind, step: step == 7, loop.RunLog.write))
        with pytest.raises(OSError, match=r"No space left.*state after step 7 is saved in .*step_000000007"):
            fit(job)
        assert checkpoint.load_latest(job.checkpoints)[1]["step"] == 7


def coco_recipe(folder, source, **changes):
    people = {"name": "coco", "images": source.images, "annotations": source.annotations}
    return tiny_recipe(folder, **{"train_data": people, "train__validate_every": 0, **changes})


@pytest.fixture
def source(tmp_path):
    """Twelve persons on twelve images."""
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data", labels([person(10 * i, i) for i in range(1, 13)], range(1, 13)))


def damage_at(monkeypatch, step, damage):
    """Calls `damage` when a step begins."""
    original = loop.train_step

    def stepping(learner, batches):
        if learner.step == step:
            damage()
        return original(learner, batches)

    monkeypatch.setattr(loop, "train_step", stepping)


class TestData:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_unreadable_image_in_the_middle_of_an_epoch(self, tmp_path, source, monkeypatch, workers):
        """The state is saved, one sentence names the file, and once it is repaired the run goes on, exactly."""
        train(coco_recipe(tmp_path / "whole", source))
        images = Path(source.images)
        order = train_order(source)
        broken = images / f"{order[8] // 10}.png"  # of the fifth batch
        good = broken.read_bytes()
        broken.write_bytes(good[:-40])
        with pytest.raises(LoadingError) as caught:
            train(coco_recipe(tmp_path / "parts", source, loader__workers=workers))
        message = str(caught.value)
        assert re.fullmatch(
            rf"{broken}: the file is truncated \(\d+ bytes, without its end marker\)\. "
            rf"The state after step 4 is saved in {tmp_path}/parts/checkpoints/step_000000004.safetensors",
            message,
        ), message
        broken.write_bytes(good)
        train(coco_recipe(tmp_path / "parts", source), resume="auto")
        assert run_losses(tmp_path / "parts") == run_losses(tmp_path / "whole")

    def test_an_unreadable_image_in_a_validation(self, tmp_path, source):
        """The state was saved before; once the image is repaired, the run validates and goes on, exactly."""
        (tmp_path / "val").mkdir()
        val = write(tmp_path / "val", labels([person(10, 1), person(20, 2)], (1, 2)))
        people = {"name": "coco", "images": val.images, "annotations": val.annotations}
        changes = {"val_data": people, "train__validate_every": 1, "acknowledged": ["shared_images"]}
        train(coco_recipe(tmp_path / "whole", source, **changes))
        broken = Path(val.images) / "2.png"
        good = broken.read_bytes()
        broken.write_bytes(good[:-40])
        with pytest.raises(BadImageError, match=r"val/images/2.png: the file is truncated"):
            train(coco_recipe(tmp_path / "parts", source, **changes))
        state = checkpoint.load_latest(tmp_path / "parts" / "checkpoints")[1]
        assert (state["step"], state["validated"]) == (6, 0), "of the end of the first epoch"
        broken.write_bytes(good)
        train(coco_recipe(tmp_path / "parts", source, **changes), resume="auto")
        assert run_losses(tmp_path / "parts") == run_losses(tmp_path / "whole")

    def test_a_folder_that_vanished(self, tmp_path, source, monkeypatch):
        images = Path(source.images)
        damage_at(monkeypatch, 3, lambda: images.rename(tmp_path / "elsewhere"))
        with pytest.raises(LoadingError, match=r"cannot be read \(No such file.*after step 4 is saved"):
            train(coco_recipe(tmp_path / "run", source))

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_folder_that_vanished_is_not_skipped_for_ever(self, tmp_path, source, monkeypatch):
        images = Path(source.images)
        damage_at(monkeypatch, 0, lambda: images.rename(tmp_path / "elsewhere"))
        recipe = coco_recipe(tmp_path / "run", source, loader__on_bad_image="skip", loader__batch_size=1)
        with pytest.raises(LoadingError, match=r"no image of 10 batches in a row could be read; the last: .*png"):
            train(recipe)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_batch_without_a_readable_image_leaves_the_positions_of_the_others(self, tmp_path, source):
        """A black crop stands in: the number of steps stays, and a resumed run is the same run."""
        order = train_order(source)
        for sample in order[2:4]:
            (Path(source.images) / f"{sample // 10}.png").write_bytes(b"")
        changes = {"loader__on_bad_image": "skip", "train__checkpoint_steps": 3, "train__keep_checkpoints": 99}
        train(coco_recipe(tmp_path / "whole", source, **changes))
        whole = run_losses(tmp_path / "whole")
        assert [step for step, _ in whole] == list(range(1, 13))
        assert whole[1][1] == 0.0, "nobody in the second batch, nothing to learn"
        (tmp_path / "parts" / "checkpoints").mkdir(parents=True)
        for suffix in ("checkpoints/step_000000003.safetensors", "log.jsonl"):
            (tmp_path / "parts" / suffix).write_bytes((tmp_path / "whole" / suffix).read_bytes())
        train(coco_recipe(tmp_path / "parts", source, **changes), resume="auto")
        assert run_losses(tmp_path / "parts") == whole

    def test_a_killed_worker(self, tmp_path, source, monkeypatch):
        """Out of memory, say. It is noticed where its next batch is waited for, never in the middle of an update."""

        def kill_workers():
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)

        damage_at(monkeypatch, 1, kill_workers)
        with pytest.raises(LoadingError, match=r"worker .* exited unexpectedly.*after step \d is saved"):
            train(coco_recipe(tmp_path / "run", source, loader__workers=1, loader__prefetch=1))


def children():
    """Process ids of this process's children."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    if not path.is_file():
        pytest.skip("this system does not list a process's children")
    return list(map(int, path.read_text().split()))


def train_order(source):
    """Sample ids in the order of the first epoch."""
    from posekd.data import CocoKeypoints, LoaderSettings, crop_loader

    loader = crop_loader(CocoKeypoints(source), (64, 64), LoaderSettings(1, workers=0), training=True)
    return [int(batch.sample_ids[0]) for batch in loader.epoch(0)]


def run_losses(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines) if r["kind"] == "train"]


def start(*words, **options):
    """`posekd ...` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(posekd.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "posekd", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def words_for(folder, source, tmp_path, **changes):
    import yaml

    from posekd.engine.recipes.recipe import recipe_to_dict

    file = tmp_path / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(recipe_to_dict(coco_recipe(folder, source, **changes))))
    return ["train", str(file)]


class TestProcess:
    def test_ctrl_c_saves_says_so_and_exits_with_130(self, tmp_path, source):
        """As a terminal sends it: to the workers of the loader, too."""
        words = words_for(tmp_path / "run", source, tmp_path, train__epochs=100000, loader__workers=1)
        process = start(*words, start_new_session=True)
        log = tmp_path / "run" / "log.jsonl"
        give_up = time.monotonic() + 120
        while not (log.is_file() and '"step": 20,' in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        last = error.splitlines()[-1]
        match = re.fullmatch(r"posekd: stopped after step (\d+); the state is saved, and --resume auto goes on", last)
        assert match, error
        assert "Traceback" not in error
        assert checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1]["step"] == int(match[1])

    def test_a_file_size_limit_is_a_real_failing_write(self, tmp_path, source):
        """The system refuses to let a file grow beyond 100 KiB: the first checkpoint (about 600 KiB) fails."""
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))  # noqa: E731
        words = words_for(tmp_path / "run", source, tmp_path, train__epochs=1)
        process = start(*words, preexec_fn=limit)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        last = error.splitlines()[-1]
        assert re.match(r"posekd: .*step_000000006.safetensors cannot be written: .*File too large", last), error
        assert "the last checkpoint is none" in last
        assert "Traceback" not in error
        assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_stop_at_the_end_of_an_epoch_does_not_wait_for_the_validation(tmp_path):
    """Slurm gives 30 seconds. The resumed run validates first, and goes on as if nothing had been."""
    whole = make_job(tmp_path / "whole")
    fit(whole)
    job = make_job(tmp_path / "parts")
    original, validated = job.prepare, []
    job.validate = lambda model: validated.append(1) or {"AP": 0.0}

    def interrupt(batch):
        if job.learner.step == 11:  # the last of the second epoch, after which a validation is due
            signal.raise_signal(signal.SIGTERM)
        return original(batch)

    job.prepare = interrupt
    with pytest.raises(KeyboardInterrupt, match="after step 12"):
        fit(job)
    assert not validated
    resumed = make_job(tmp_path / "parts")
    load_state_dict(resumed, checkpoint.load_latest(resumed.checkpoints)[1])
    fit(resumed)
    assert losses(resumed) == losses(whole)
    assert resumed.best == whole.best


def test_a_loader_that_ends_early_is_said(tmp_path):
    class Short(NoiseLoader):
        def epoch(self, epoch=0, start=0):
            yield from list(super().epoch(epoch, start))[:-1]

    with pytest.raises(LoadingError, match="ended at step 5, before the epoch did"):
        fit(make_job(tmp_path, loader=Short()))
