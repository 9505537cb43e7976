"""What distillation brings at a size that needs a GPU: synthetic people, HRNet-W32 as teacher, ELPN-V1, three seeds.

    python benchmarks/experiments/gpu_evidence.py --minutes N [--out runs/gpu_evidence] [--seeds 0 1 2]

Five trainings per seed, all of the same people, length and schedule:

    teacher    HRNet-W32, labels alone
    plain      ELPN-V1, labels alone
    mapd       ELPN-V1, labels, the teacher's heatmaps by their squared error and by their KL divergence (the paper's)
    mse        the same without the KL divergence
    kl         the same without the squared error

People are drawn beforehand by all cores. How many, and for how many epochs each network is trained, follows from N
alone before anything is trained, and is kept in `<out>/schedule.json`: no result can change it. Every student of a seed
starts from the same weights and sees the same batches. Scored is the network of the last step, on 2,000 validation
images; beside each difference stands its paired bootstrap interval over the images (`arms.py`). Started again, a run
that was stopped goes on where it stood; `results.json` is written after each training.

`--tiny` takes tiny networks and few images: a trial of the program on any machine, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks.experiments"

from posekd.data.synthetic import SyntheticSettings, write_coco
from posekd.files import write_atomically

from .arms import TEACHER, Experiment, main

PEOPLE = 2.0  # of an image, on average
TEACHER_COST = 3.0  # of a student's step, which the teacher's own takes
EPOCHS = 20
SAMPLES_PER_S = 1500.0  # of a student's training on an H100, assumed beforehand
STUDENT = "mapd/elpn_v1_coco_256x192"
COMPARISONS = {
    "all of MAPD": ("plain", "mapd"),
    "squared error alone": ("plain", "mse"),
    "KL divergence alone": ("plain", "kl"),
    "the KL divergence beside the squared error": ("mse", "mapd"),
}
SMALL = "{size: [64, 64], width: 8, modules: [1], blocks: 1, stem_width: 8, stage1_width: 4, stage1_blocks: 1}"


@dataclass(frozen=True)
class Schedule:
    """What is fixed before anything is trained.

    Attributes:
        images: of training.
        validation: images of validation.
        epochs: of each training.
        batch: persons of a step.
    """

    images: int
    validation: int = 2000
    epochs: int = EPOCHS
    batch: int = 128


def schedule_for(minutes: float, seeds: int) -> Schedule:
    """As many images as the time allows, at the rate that is assumed; at least 1,000."""
    steps = 4 + TEACHER_COST  # trainings of a seed, in those of a student
    samples = 0.8 * 60 * minutes * SAMPLES_PER_S / (seeds * steps * EPOCHS)  # a fifth is for drawing and scoring
    return Schedule(images=min(40000, max(1000, int(samples / PEOPLE))))


def experiment_for(schedule: Schedule, people: Path, device: str, tiny: bool) -> Experiment:
    """The arms, on people drawn in that folder."""
    data = []
    for group, split in (("train_data", "train"), ("val_data", "val")):
        labels = people / "annotations" / f"person_keypoints_{split}.json"
        data += [f"--{group}.images={people / split}", f"--{group}.annotations={labels}"]
    workers = 0 if tiny else max(1, len(os.sched_getaffinity(0)) - 2)
    length = [f"--train.epochs={schedule.epochs}", "--train.validate_every=0", "--schedule.kind=cosine"]
    speed = [f"--loader.batch_size={schedule.batch}", f"--loader.workers={workers}", f"--train.device={device}"]
    speed += ["--train.channels_last=true", "--train.graph=true", "--train.checkpoint_steps=500"]
    speed += ["--train.precision=bf16"] if device == "cuda" else []
    small = [f"--student.overrides={SMALL}"] if tiny else ["--schedule.warmup_steps=200"]
    taught = [f"--teacher.overrides={SMALL}"] if tiny else []
    arms: dict[str, tuple[str, list[str]]] = {
        TEACHER: ("supervised/hrnet_w32_coco_256x192", ["--student.backbone=null"]),
        "plain": (STUDENT, [*taught, "--method.name=supervised"]),
        "mapd": (STUDENT, taught),
        "mse": (STUDENT, [*taught, "--method.beta=0"]),
        "kl": (STUDENT, [*taught, "--method.alpha=0"]),
    }
    return Experiment(arms, "plain", COMPARISONS, [*data, *length, *speed, *small], "runs/gpu_evidence")


def draw(schedule: Schedule, people: Path, processes: int) -> None:
    """Draws what is not there yet."""
    for split, images in (("train", schedule.images), ("val", schedule.validation)):
        if not (people / "annotations" / f"person_keypoints_{split}.json").is_file():  # written last
            print(f"drawing {images} images ({split}) with {processes} processes", flush=True)
            settings = SyntheticSettings(split=split, size=(360, 480), people=(1, 3), difficulty=0.6)
            write_coco(people, images, settings=settings, processes=processes)


def run(argv: Sequence[str] | None = None) -> int:
    """Draws, trains what fits into the time, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="for all of it; no training begins after them")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_evidence"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a trial of the program")
    options, overrides = parser.parse_known_args(argv)
    if not options.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "schedule.json"
    if file.is_file():
        schedule = Schedule(**json.loads(file.read_text(encoding="utf-8")))
    else:
        schedule = schedule_for(options.minutes, len(options.seeds))
        if options.tiny:
            schedule = Schedule(images=12, validation=4, epochs=1, batch=8)
        write_atomically(file, json.dumps(asdict(schedule), indent=2) + "\n")
    people = (options.out / "people").resolve()
    draw(schedule, people, len(os.sched_getaffinity(0)))
    experiment = experiment_for(schedule, people, options.device, options.tiny)
    words = [f"--out={options.out}", "--seeds", *map(str, options.seeds)]
    words += [f"--threads={torch.get_num_threads()}", *overrides]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    facts = {"schedule": asdict(schedule), "device": device, "minutes": options.minutes}
    return main(experiment, __doc__, words, deadline, facts)


if __name__ == "__main__":
    sys.exit(run())
