"""Does distilling tags help? SmallerHRNet's Table 2 on synthetic people, on CPU threads.

    python benchmarks/experiments/smallerhrnet_sweep.py [--out runs/smallerhrnet_sweep] [--seeds 0 1 2] [--threads 2]

Six trainings per seed, by the shipped recipes `smallerhrnet/tiny_teacher` and `smallerhrnet/tiny`, half as long again;
every student of a seed starts from the same weights, sees the same batches and takes as many steps:

    teacher      labels alone
    student      labels alone, no teacher
    heatmaps     + the teacher's heatmaps
    tags         + the teacher's heatmaps and tags, the tag term as a mean
    light        the same, the tag term a thousandth of that, like pull and push: `method.tag_weight`
    authors      what the paper's public code computes: the coarse heatmap term 1 + B times, no tags

The paper's gain from tags (24.4 to 27.6 AP on COCO) came with the code of the last arm, so the question is whether it
is the tag term or the repeated heatmap term. Scored is the network of the last step, on 1,000 validation persons or
more; none is picked by its score. Beside each difference stands its paired bootstrap interval over the images. A
comparison counts only if the student alone reaches an AP of 0.30: below that the task was not learnt, and the report
says so.
The task is small, two people in 128x128 pixels, so that a seed costs minutes. Its size and schedule were fixed after
trainings of the undistilled student alone (AP 0.46 after 8 epochs), before any distilled one was trained. The arm
`light` was added after the first seed's other arms had finished: read it as a suggestion, not as a test.
A killed run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks.experiments"

from .arms import Experiment, main

TEACHER, STUDENT = "smallerhrnet/tiny_teacher", "smallerhrnet/tiny"
TASK = ["--val_data.images=550", "--train.epochs=12", "--train.validate_every=4", "--train.precision=bf16"]
ARMS: dict[str, tuple[str, list[str]]] = {
    "teacher": (TEACHER, []),
    "student": (STUDENT, ["--method.name=associative_embedding", "--method.kind=exact", "--method.sigma=1.5"]),
    "heatmaps": (STUDENT, ["--method.distil_tags=false"]),
    "tags": (STUDENT, []),
    "light": (STUDENT, ["--method.tag_weight=0.001"]),
    "authors": (STUDENT, ["--method.tag_reduction=authors", "--method.teacher_mode=train"]),
}
COMPARISONS = {
    "heatmap distillation": ("student", "heatmaps"),
    "tag distillation": ("heatmaps", "tags"),
    "tag distillation, light": ("heatmaps", "light"),
    "the authors' code": ("heatmaps", "authors"),
    "all of it": ("student", "tags"),
}
EXPERIMENT = Experiment(ARMS, "student", COMPARISONS, TASK, "runs/smallerhrnet_sweep")

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, __doc__))
