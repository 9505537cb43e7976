"""A job for the loop that trains in a second, on noise."""

import json

import torch

from helpers.tiny_pose import TinyPose, random_batch
from posekd.distill import MAPD, FrozenTeacher
from posekd.engine.progress import read_log
from posekd.engine.training.ema import Ema
from posekd.engine.training.loop import Job, LoopSettings
from posekd.engine.training.optim import OptimSettings, ScheduleSettings, make_optimizer
from posekd.engine.training.step import Learner


class NoiseLoader:
    """Batch i of epoch e is a function of (e, i), as the real loader's; each element is a ready batch."""

    def __init__(self, steps=6, count=4):
        self.steps, self.count = steps, count

    def __len__(self):
        return self.steps

    def epoch(self, epoch=0, start=0):
        torch.rand(1)  # a DataLoader that starts draws from the global generator, too
        for i in range(start, self.steps):
            yield random_batch(self.count, seed=100 * epoch + i)


class DropoutPose(TinyPose):
    """Training depends on the random state, so that a resume that loses it shows."""

    def forward(self, images):
        return super().forward(torch.nn.functional.dropout(images, 0.2, self.training))


def make_job(folder, method=None, loader=None, ema=0.9, **settings):
    torch.manual_seed(0)
    method = method or MAPD(DropoutPose(), FrozenTeacher(TinyPose(seed=1)))
    settings = LoopSettings(**{"epochs": 3, "log_every": 1, "validate_every": 2, **settings})
    learner = Learner(
        method,
        make_optimizer(method.parameters(), OptimSettings(lr=0.01)),
        torch.amp.GradScaler("cpu", enabled=settings.precision == "fp16"),
        precision=settings.precision,
        ema=Ema(method.student, ema) if ema else None,
    )

    def validate(model):
        assert not model.training
        torch.rand(7)  # must not disturb training
        return {"AP": float(model.conv.weight.mean())}

    return Job(
        learner=learner,
        loader=loader or NoiseLoader(),
        prepare=lambda batch: batch,
        validate=validate,
        save_weights=lambda model, path, facts: path.write_text(json.dumps(facts)),
        folder=folder,
        settings=settings,
        schedule=ScheduleSettings(milestones=(2,), warmup_steps=3),
        lr=0.01,
        facts={"recipe": {}},
    )


def losses(job):
    records = [r for r in read_log(job.folder / "log.jsonl") if r["kind"] == "train"]
    return [(r["step"], r["lr"], r["loss"]) for r in records]
