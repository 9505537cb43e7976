"""What does each thing that SIMPLE can mimic bring, and each way to tell people apart? On synthetic pairs of people.

    python benchmarks/experiments/simple_modes.py [--out runs/simple_modes] [--seeds 0 1 2] [--arms none both labels]

By the shipped recipes `simple/tiny_teacher` and `simple/tiny`; every student of a seed starts from the same weights,
sees the same batches and takes as many steps:

    teacher    a top-down HRNet, labels alone; scored on labelled boxes
    none       no mimicking: the first stage to the end
    labels     + from the fourth of five epochs on, label heatmaps inside the student's own boxes
    features   + the teacher's features there
    heatmaps   + the teacher's heatmaps there
    both       + the teacher's heatmaps and label heatmaps: SIMPLE
    anchors    as none, but people's boxes by RetinaNet's anchors instead of points
    tags       as none, but no boxes: keypoints are grouped by associative embedding

The paper's AP on COCO, of 100, W32: none 67.1, labels 67.9, features 66.8, heatmaps 70.2, both 70.8 (Table 3); tags
63.4, anchors 64.5 (Table 2). The hypothesis is that order. The task's size and schedule were fixed after one training
of the teacher and one without mimicking, of a seed that is not among those reported, before any student had mimicked
anything on it. There are two people in an image and two boxes of it go on: a fresh student finds a person several
times, and most of a step would be spent on that.
A killed run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks.experiments"

from .arms import Experiment, main

TEACHER, STUDENT = "simple/tiny_teacher", "simple/tiny"
MODES = {"none": "none", "labels": "labels", "features": "features", "heatmaps": "teacher", "both": "both"}
SECOND_HALF = ["--method.mimic_from=4", "--method.boxes_per_image=2"]
ARMS = {
    "teacher": (TEACHER, []),
    **{arm: (STUDENT, [f"--method.mimic={mode}", *SECOND_HALF]) for arm, mode in MODES.items()},
}
ARMS["anchors"] = (STUDENT, ["--method.mimic=none", *SECOND_HALF, "--student.overrides.detection=anchors"])
ARMS["tags"] = (
    STUDENT,
    [
        "--student={name: simple_w18_tags, overrides: {size: [128, 128], width: 16, widths: [16, 32, 64], "
        "modules: [1, 1], blocks: 1, stem_width: 16, stage1_width: 8, stage1_blocks: 1}}",
        "--method={name: associative_embedding, kind: exact, sigma: 1.5}",
    ],
)
COMPARISONS = {
    **{f"none to {arm}": ("none", arm) for arm in MODES if arm != "none"},
    "labels to both": ("labels", "both"),
    "anchors to points": ("anchors", "none"),
    "tags to points": ("tags", "none"),
}
TASK = [
    "--train_data.images=1600", "--val_data.images=510", "--train.epochs=5", "--train.precision=bf16",
    "--train.validate_every=0",
]  # fmt: skip
EXPERIMENT = Experiment(ARMS, "none", COMPARISONS, TASK, "runs/simple_modes")

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, __doc__))
