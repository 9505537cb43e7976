"""Run by test_distributed.py under torchrun, in two processes: what it is told, on the tiny network."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from helpers.people_student import Knowing, Quarter, batch, ideal, without_people
from helpers.tiny_job import make_job
from helpers.tiny_pose import SPEC, TinyPose, random_batch
from posekd.cli import main as posekd
from posekd.codecs import heatmaps
from posekd.data import LoaderSettings, PoseRecords
from posekd.data.loading.packing import PackedDataset
from posekd.distill import MAPD, FrozenTeacher, Simple, SimpleSettings
from posekd.distill.convert import resample
from posekd.engine import distributed
from posekd.engine.evaluate import evaluate
from posekd.engine.scoring.coco import coco_results
from posekd.engine.training import checkpoint, loop
from posekd.engine.training.loop import fit
from posekd.paradigms import TopDownInference
from posekd.skeleton import Skeleton

COUNT = 3  # persons a micro-batch


class MicroBatches:
    """Micro-batch i of rank r is the `i * world + r`-th of all, as from the real loader."""

    def __init__(self, steps, rank=0, world=1, change=None):
        self.steps, self.rank, self.world, self.change = steps // world, rank, world, change

    def __len__(self):
        return self.steps

    def epoch(self, epoch=0, start=0):
        for i in range(start, self.steps):
            number = i * self.world + self.rank
            batch = random_batch(COUNT, seed=100 * epoch + number)
            batch.sample_ids += 10 * number
            if self.change is not None:
                self.change(batch, number)
            yield batch


def nobody(batch, number):
    """Odd micro-batches, which are all of rank 1's, show no labelled keypoint."""
    if number % 2:
        batch.keypoints.zero_()


def poison(batch, number):
    """One person of the fourth micro-batch: rank 1's in the second step."""
    if number == 3:
        batch.images[1, 0, 0, 0] = float("nan")


CHANGES = {"train": None, "nobody": nobody, "poison": poison, "stop": None}


def job_for(folder, kind, rank=0, world=1, **settings):
    """Plain SGD, so that a difference in a gradient is a difference in a weight, not a sign (Adam)."""
    method = MAPD(TinyPose(), FrozenTeacher(TinyPose(seed=1)))
    loader = MicroBatches(8, rank, world, CHANGES[kind])
    job = make_job(folder, method=method, loader=loader, **{"epochs": 2, **settings})
    job.learner.optimizer = torch.optim.SGD(job.learner.parameters, lr=0.01, momentum=0.9)
    job.lr = 0.5
    return job


def people(count=7):
    """A source of random images, one person each."""
    five = Skeleton("three", ("nose", "left_a", "right_a"), (), (0, 2, 1), (0.05,) * 3)
    rng = np.random.default_rng(0)

    class Source:
        records = PoseRecords(
            five,
            np.arange(count) + 1,
            np.tile((60, 50), (count, 1)),
            np.arange(count),
            np.concatenate([rng.uniform(5, 45, (count, 3, 2)), np.full((count, 3, 1), 2.0)], -1).astype(np.float32),
            np.tile(np.array([5, 5, 40, 50], np.float32), (count, 1)),
            np.ones(count, np.float32),
            rng.permutation(count) + 100,
        )
        images = rng.integers(0, 256, (count, 60, 50, 3), dtype=np.uint8)

        def load_image(self, row):
            return self.images[row]

        def image_name(self, row):
            return f"image {row}"

        def coco_ground_truth(self):
            r = self.records
            annotations = [
                {
                    "id": int(r.sample_ids[i]), "image_id": i + 1, "category_id": 1, "iscrowd": 0, "area": 2000.0,
                    "bbox": r.boxes[i].tolist(), "num_keypoints": 3, "keypoints": r.keypoints[i].reshape(-1).tolist(),
                }
                for i in range(count)
            ]  # fmt: skip
            images = [{"id": i + 1, "file_name": "", "height": 60, "width": 50} for i in range(count)]
            return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}

    return Source()


def ask(teacher, images):
    """The teacher's heatmaps in the student's pixels."""
    return resample(heatmaps.read(teacher.outputs(images, SPEC))[-1], (8, 6))


def plain(found):
    """The people of a report as plain values."""
    return {name: getattr(found, name).tolist() for name in ("keypoints", "scores", "areas", "image_ids", "sample_ids")}


def evaluate_people():
    report = evaluate(TinyPose(SPEC), people(), TopDownInference(flip_test=False), loader=LoaderSettings(2, workers=0))
    return {
        "results": coco_results(report.found),
        "found": plain(report.found),
        "numbers": report.main.result.numbers(),
        "persons": report.count,
    }


def commands(folder, file):
    """Runs the `posekd` commands that `commands.json` lists: what each has printed, and how many rows it has loaded.

    A process cannot leave a gloo group and join another at once, so the first command's stays open for the others.
    """
    join, load = distributed.group, PackedDataset.__getitems__
    found = []
    with contextlib.ExitStack() as joined:
        distributed.group = lambda device: contextlib.nullcontext(joined.enter_context(join(device)))
        for words in json.loads((folder / "commands.json").read_text()):
            rows = []
            PackedDataset.__getitems__ = lambda data, keys, rows=rows: rows.extend(keys) or load(data, keys)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert posekd(words) == 0
            found.append({"printed": out.getvalue(), "rows": len(rows)})
    file.write_text(json.dumps(found))


def both_stages(rank):
    """SIMPLE's: the first with adapters that are idle, and the second, in which rank 1 never sees anybody."""
    data = batch()
    student = Knowing(*ideal(data))
    student.pose_head.requires_grad_(False)  # which it does not use
    method = Simple(student, FrozenTeacher(Quarter()), SimpleSettings(mimic_from=2)).train()
    start = [p.detach().clone() for p in method.adapters.parameters()]
    data = without_people(data) if rank else data
    replicated = distributed.replicate(method)
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-4)
    mimicked = []
    for epoch in (0, 1, 1):
        method.start_epoch(epoch)
        terms = replicated(data)
        mimicked.append(float(terms.get("mimic_teacher", -1.0)))
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    moved = max(float((p - q).abs().max()) for p, q in zip(method.adapters.parameters(), start, strict=True))
    weights = {name: p.tolist() for name, p in method.named_parameters()}
    return {"mimicked": mimicked, "moved": moved, "weights": weights}


def main(kind: str, folder: Path) -> None:
    loop.plot_curves = lambda runs, path: None
    torch.set_num_threads(1)
    if kind == "commands":
        commands(folder, folder / f"rank{os.environ['RANK']}.json")
        return
    with distributed.group(torch.device("cpu")):
        rank = distributed.rank()
        out = folder / f"rank{rank}.json"
        if kind == "evaluate":
            out.write_text(json.dumps(evaluate_people()))
            return
        if kind == "simple":
            out.write_text(json.dumps(both_stages(rank)))
            return
        if kind == "shard":
            teacher, images = FrozenTeacher(TinyPose(seed=1)), random_batch(COUNT, seed=rank).images
            whole = ask(teacher, images)
            distributed.shard(teacher.model, torch.device("cpu"))
            local = sum(p.to_local().numel() for p in teacher.model.parameters())
            error = float((ask(teacher, images) - whole).abs().max())
            method = MAPD(TinyPose(), teacher)
            teacher.sharded = True
            before = [p.numel() for p in TinyPose().parameters()]
            loss = sum(method(random_batch(COUNT, seed=rank)).values())
            loss.backward()
            out.write_text(json.dumps({"local": local, "all": sum(before), "error": error, "loss": float(loss)}))
            return
        # a folder of its own for rank 1, which may not write: it would be seen there
        job = job_for(folder / ("run" if rank == 0 else "other"), kind, rank, distributed.world())
        written = []
        job.save_weights = lambda model, path, facts: (written.append(path.name), path.write_text("{}"))
        if kind == "stop":
            original = job.prepare

            def interrupt(batch):
                if job.learner.step == 2 and rank == 1:
                    import signal

                    signal.raise_signal(signal.SIGTERM)
                return original(batch)

            job.prepare = interrupt
        message = ""
        try:
            fit(job)
        except (ArithmeticError, KeyboardInterrupt) as error:
            message = str(error)
        if kind == "stop":
            distributed.gather("rank 0 has saved")
            stopped, job = job, job_for(job.folder, kind, rank, distributed.world())
            loop.load_state_dict(job, checkpoint.load_latest(folder / "run" / "checkpoints")[1])
            job.save_weights = stopped.save_weights
            fit(job)
        state = job.learner.method.state_dict()
        out.write_text(
            json.dumps(
                {
                    "weights": {k: v.tolist() for k, v in state.items() if "running" not in k and "tracked" not in k},
                    "written": written,
                    "message": message,
                    "step": job.learner.step,
                    "scores": job.scores,
                }
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(0)  # what torch does at a process's end is not tested here
