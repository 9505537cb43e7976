"""Where the time of training goes: `posekd bench train CONFIG`, or `python benchmarks/train_throughput.py CONFIG`.

Three loops train the recipe's student for some steps, in turn, round by round:

    real        the loop as it is: workers decode and pack, the device crops, the step runs
    preloaded   the same step on batches that are on the device already: what the loader could cost at most
    baseline    `baselines/train_loop.py`, written as published code is (recipes of MAPD only)

Then a few steps are taken apart, waiting for the device after each part, and the work of a worker is timed in this
process. Figures are medians of the rounds with their extremes. `--synthetic N` writes N JPEGs of synthetic people and
an untrained teacher and uses those in place of the recipe's, so that nothing need be there; with `--data FOLDER` they
are kept there and found there by the next run. It says what it is at, and ends within `--minutes` and one step: rounds
for which no time is left are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks"

from posekd.data import CropDataset
from posekd.data.sources.coco import CocoSettings
from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.distill import MAPD
from posekd.engine.build import build_job, build_model
from posekd.engine.recipes.recipe import Recipe, read_recipe, recipe_to_dict
from posekd.engine.training.loop import Job
from posekd.engine.training.optim import set_rate
from posekd.engine.training.step import train_step, update
from posekd.models import save_weights
from posekd.precision import DTYPES
from posekd.structures import PackedCropBatch

from .baselines import train_loop
from .harness import environment

KEPT = 8  # batches of the preloaded loop
PARTS = ("transfer", "crop", "teacher", "student", "loss", "backward", "optimizer")


def synthetic_recipe(recipe: Recipe, images: int, folder: Path) -> Recipe:
    """The recipe on JPEGs of COCO's size and an untrained teacher, which cost the same time."""
    people = _people(folder, images)
    teacher = recipe.teacher
    if teacher is not None:
        weights = folder / "teacher.safetensors"
        save_weights(build_model(replace(teacher, weights=None), 17), weights)
        teacher = replace(teacher, weights=str(weights))
    train = replace(recipe.train, validate_every=0)
    return replace(recipe, train_data=people, val_data=None, teacher=teacher, train=train)


def _people(folder: Path, images: int) -> CocoSettings:
    """Drawn people in COCO's form: those that are there, if there are so many, or new ones."""
    labels = folder / "annotations" / "person_keypoints_train.json"
    if labels.is_file():
        count = len(json.loads(labels.read_text(encoding="utf-8"))["images"])
        if count != images:
            raise ValueError(f"{folder} has {count} images, not {images}: pass --synthetic {count}, or another --data")
        return CocoSettings(images=str(folder / "train"), annotations=str(labels))
    _say(f"drawing {images} images in {folder}")
    processes = len(os.sched_getaffinity(0)) if images >= 100 else 1
    return write_coco(folder, images, settings=SyntheticSettings(size=(480, 640), people=(1, 4)), processes=processes)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def real_steps(job: Job) -> Iterator[tuple[int, float]]:
    """Takes steps for ever; persons and seconds of waiting of each."""
    size, take = job.settings.accumulate, job.learner.captured or train_step
    for epoch in count():
        packed = job.loader.epoch(epoch)
        for _ in range(job.steps_per_epoch):
            start = time.perf_counter()
            group = list(islice(packed, size))
            waited = time.perf_counter() - start
            take(job.learner, [job.prepare(batch) for batch in group])
            yield sum(map(len, group)), waited


def preloaded_steps(job: Job, groups: Sequence[Sequence[PackedCropBatch]]) -> Iterator[tuple[int, float]]:
    """The same with batches that wait on the device."""
    take = job.learner.captured or train_step
    for group in cycle(groups):
        take(job.learner, [job.prepare(batch) for batch in group])
        yield sum(map(len, group)), 0.0


def baseline_steps(job: Job, recipe: Recipe) -> Iterator[tuple[int, float]]:
    """The published way; it has a loader of its own, and the student's weights are what they have become."""
    method, device = job.learner.method, job.learner.device
    assert isinstance(method, MAPD)
    assert isinstance(job.loader.dataset, CropDataset)  # type: ignore[attr-defined]
    samples = train_loop.Samples(job.loader.dataset, method.student.spec, method.settings.sigma)  # type: ignore
    plan = job.loader.plan  # type: ignore[attr-defined]
    batches = train_loop.loader(
        samples, plan, recipe.loader.workers, recipe.loader.pin_memory and device.type == "cuda"
    )
    eager = train_loop.EagerMapd(method)
    optimizer = torch.optim.Adam(method.student.parameters(), lr=recipe.optim.lr * 1e-3)
    for epoch in count():
        plan.epoch, plan.start = epoch, 0
        waiting = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - waiting
            train_loop.step(eager, optimizer, batch, device)
            yield len(batch["images"]), waited
            waiting = time.perf_counter()


def measure(
    loops: dict[str, Iterator[tuple[int, float]]],
    steps: int,
    rounds: int,
    idle: int,
    device: torch.device,
    deadline: float = math.inf,
) -> dict[str, dict[str, Any]]:
    """Samples per second and share of waiting of each loop, in turn.

    Args:
        loops: by name.
        steps: counted in a round.
        rounds: of all loops.
        idle: steps before each count, which use up what a loader has prepared while the others ran.
        device: to wait for.
        deadline: of `time.monotonic()`, after which a round is cut short, and no other begins.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for turn in range(rounds):
        for place, (name, loop) in enumerate(loops.items()):
            share = _share(deadline, (rounds - turn) * len(loops) - place)  # of the time that is left
            if turn and share <= 0:
                _say(f"  no time for round {turn + 1} of {rounds}")
                return _summary(found)
            _say(f"  round {turn + 1} of {rounds}: {name}")
            middle, end = time.monotonic() + share / 2, time.monotonic() + share
            for _ in range(idle):
                next(loop)
                if time.monotonic() > middle:
                    break
            _wait(device)
            start = time.perf_counter()
            taken = []
            while len(taken) < steps and (not taken or time.monotonic() < end):
                taken.append(next(loop))
            _wait(device)
            seconds = time.perf_counter() - start
            found[name].append((sum(n for n, _ in taken) / seconds, sum(w for _, w in taken) / seconds))
    return _summary(found)


def _share(deadline: float, parts: int) -> float:
    return (deadline - time.monotonic()) / parts


def _summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    """Medians and extremes of the rounds."""
    return {
        name: {
            "samples_per_s": statistics.median(rate for rate, _ in rows),
            "samples_per_s_extremes": [min(rows)[0], max(rows)[0]],
            "data_wait": statistics.median(share for _, share in rows),
        }
        for name, rows in found.items()
    }


def take_apart(
    job: Job, groups: Sequence[Sequence[PackedCropBatch]], steps: int, deadline: float = math.inf
) -> dict[str, float]:
    """Milliseconds per step of each part, the device idle between them; no step begins after the deadline but one."""
    learner, device = job.learner, job.learner.device
    spent = dict.fromkeys(PARTS, 0.0)
    clock = SimpleNamespace(start=0.0)

    def lap() -> float:
        _wait(device)
        now = time.perf_counter()
        passed, clock.start = now - clock.start, now
        return passed

    def ends(part: str) -> Callable[..., None]:
        return lambda *_: spent.__setitem__(part, spent[part] + lap())

    networks = {"student": learner.method.student}
    if learner.method.teacher is not None:
        networks["teacher"] = learner.method.teacher.model
    hooks = [network.register_forward_pre_hook(ends("loss")) for network in networks.values()]
    hooks += [network.register_forward_hook(ends(name)) for name, network in networks.items()]
    taken = 0
    for step in range(-2, steps):
        if taken and time.monotonic() > deadline:
            break
        taken += step >= 0
        if step == 0:
            spent.update(dict.fromkeys(PARTS, 0.0))
        for packed in groups[step % len(groups)]:
            lap()
            packed = packed.to(device)
            spent["transfer"] += lap()
            batch = job.prepare(packed)
            spent["crop"] += lap()
            with torch.autocast(device.type, DTYPES[learner.precision], enabled=learner.precision != "fp32"):
                terms = learner.forward(batch)
            loss = torch.stack(list(terms.values())).sum() / len(groups[0])
            spent["loss"] += lap()
            learner.scaler.scale(loss).backward()
            spent["backward"] += lap()
        update(learner, batch.sample_ids, 0.0)
        learner.check_gradients()
        spent["optimizer"] += lap()
    for hook in hooks:
        hook.remove()
    return {part: seconds / taken * 1e3 for part, seconds in spent.items()}


def worker_times(job: Job, batches: int) -> dict[str, float]:
    """Milliseconds a person of a worker's work: decoding, and everything (decoding, draws, packing)."""
    dataset, plan = job.loader.dataset, job.loader.plan  # type: ignore[attr-defined]
    decode = whole = 0.0
    persons = 0
    for keys in islice(iter(plan), batches):
        rows, reductions = {int(dataset.image_rows[row]) for _, row in keys}, dataset.reductions(keys)
        start = time.perf_counter()
        for row in rows:
            dataset.load_image(row, reductions.get(row, 1))
        decode += time.perf_counter() - start
        start = time.perf_counter()
        dataset.__getitems__(keys)
        whole += time.perf_counter() - start
        persons += len(keys)
    return {"decode_ms": decode / persons * 1e3, "all_ms": whole / persons * 1e3}


def run(recipe: Recipe, steps: int, rounds: int, baseline: bool = True, seconds: float = math.inf) -> dict[str, Any]:
    """Measures a recipe, in about so many seconds; what `--json` writes."""
    deadline = time.monotonic() + 0.8 * seconds  # the rest is for the parts of a step
    _say("building student, teacher and loader")
    job = build_job(recipe)
    device, workers = job.learner.device, recipe.loader.workers
    set_rate(job.learner.optimizer, recipe.optim.lr * 1e-3)  # the weights hardly move: no loop spoils the next one's
    first = job.loader.epoch(0)
    groups = [list(islice(first, job.settings.accumulate)) for _ in range(min(KEPT, job.steps_per_epoch))]
    del first
    on_device = [[packed.to(device) for packed in group] for group in groups]
    loops = {"real": real_steps(job), "preloaded": preloaded_steps(job, on_device)}
    if baseline and isinstance(job.learner.method, MAPD) and recipe.train.teacher_cache is None:
        loops["baseline"] = baseline_steps(build_job(_as_published(recipe)), recipe)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, Any] = {"benchmark": "train", "recipe": recipe_to_dict(recipe), "steps": steps, "rounds": rounds}
    options = SimpleNamespace(device=device.type, threads=torch.get_num_threads(), warm=True)
    result["environment"] = environment(options)  # type: ignore[arg-type]
    idle = max(2, workers * recipe.loader.prefetch + 1)
    result["loops"] = measure(loops, steps, rounds, idle, device, deadline)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    for loop in loops.values():
        loop.close()  # type: ignore[attr-defined]
    apart = build_job(replace(recipe, train=replace(recipe.train, compile="none")))
    _say("  a step in parts")
    result["step_ms"] = take_apart(apart, groups, steps, deadline + 0.15 * seconds)
    result["worker"] = {**worker_times(job, 2), "workers": workers}
    result["memory_mib"] = {
        "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device_peak": None if peak is None else peak / 2**20,
    }
    return result


def _as_published(recipe: Recipe) -> Recipe:
    """Float32, eager, contiguous; one batch per step."""
    plain = replace(recipe.train, precision="fp32", compile="none", teacher_dtype=None, channels_last=False)
    return replace(recipe, train=replace(plain, accumulate=1, ema_decay=None, graph=False))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(result: dict[str, Any]) -> None:
    """Prints what a person wants to know."""
    recipe, loops = result["recipe"], result["loops"]
    env = result["environment"]
    teacher = recipe["teacher"]["name"] if recipe["teacher"] else "no teacher"
    cached = " (cached)" if recipe["train"]["teacher_cache"] else ""
    loader = recipe["loader"]
    print(f"{recipe['student']['name']} from {teacher}{cached}, batch {loader['batch_size']}, on {env['device']}")
    print(f"  {env['threads']} threads, {loader['workers']} workers, {recipe['train']['precision']}")
    for name, row in loops.items():
        low, high = row["samples_per_s_extremes"]
        wait = f", waits for data {row['data_wait']:.0%} of the time" if name != "preloaded" else ""
        print(f"  {name:<10}{row['samples_per_s']:9.1f} samples/s ({low:.1f} to {high:.1f}){wait}")
    real = loops["real"]["samples_per_s"]
    print(f"  the real loop runs at {real / loops['preloaded']['samples_per_s']:.0%} of the preloaded step", end="")
    print(f", {real / loops['baseline']['samples_per_s']:.2f}x the baseline" if "baseline" in loops else "")
    total = sum(result["step_ms"].values())
    print(f"  a step in parts, the device idle between them ({total:.1f} ms):")
    for part, ms in result["step_ms"].items():
        print(f"    {part:<12}{ms:8.2f} ms {ms / total:5.0%}")
    worker = result["worker"]
    print(f"  a worker needs {worker['all_ms']:.2f} ms per person, {worker['decode_ms']:.2f} of it to decode", end="")
    capacity = max(1, worker["workers"]) * 1e3 / worker["all_ms"]
    print(f": {worker['workers']} of them give {capacity:.0f} samples/s" if worker["workers"] else "")
    memory = result["memory_mib"]
    device = f", {memory['device_peak']:.0f} MiB of the GPU" if memory["device_peak"] else ""
    print(f"  peak memory {memory['host_peak']:.0f} MiB of the main process{device}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the options, measures, prints, and appends to `--json`."""
    parser = argparse.ArgumentParser(
        "posekd bench train", description="where the time of training goes", allow_abbrev=False
    )
    parser.add_argument("config", help="a YAML file, or the name of a shipped recipe; its keys can be overridden")
    parser.add_argument("--steps", type=int, default=10, help="steps counted a round (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all loops (default 3)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--synthetic", type=int, metavar="N", help="N JPEGs of synthetic people, an untrained teacher")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of the drawn people: written if it is empty")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it (default 10)")
    parser.add_argument("--no-baseline", action="store_true", help="leave out the loop written as published code is")
    parser.add_argument("--json", type=Path, help="append the result to this file")
    options, overrides = parser.parse_known_args(argv)
    if not options.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    if options.data is not None and not options.synthetic:
        parser.error("--data is the folder of drawn people: say how many images with --synthetic N")
    begun = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe = read_recipe(options.config, [*overrides, "--out", folder])
        if options.synthetic:
            recipe = synthetic_recipe(recipe, options.synthetic, options.data or Path(folder))
        left = max(1.0, 60 * options.minutes - (time.monotonic() - begun))
        result = run(recipe, options.steps, options.rounds, not options.no_baseline, left)
    report(result)
    if options.json:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
