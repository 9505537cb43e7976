"""What does each of DistilPose's terms bring? The eight rows of its table on synthetic people, on CPU threads.

    python benchmarks/experiments/distilpose_terms.py [--out runs/distilpose_terms] [--seeds 0 1 2] [--arms all]

Nine trainings per seed, by the shipped recipes `distilpose/tiny_teacher` and `distilpose/tiny`; every student of a seed
starts from the same weights, sees the same batches and takes as many steps:

    teacher          a TokenPose, labels alone
    none             labels alone: plain regression
    heatmaps         + simulated heatmaps
    scores           + confidences
    heatmaps_scores  + both
    keypoint_tokens  + keypoint tokens
    visual_tokens    + visual tokens
    tokens           + both kinds of tokens
    all              + all four: DistilPose

The paper's gains on COCO, in AP of 100, for a student of 56.0: heatmaps +7.2, scores +0.4, both +8.1; keypoint tokens
+11.1, visual tokens +5.7, both +11.5; all +15.6. A student whose scores no term trains says none (confidences are 1),
as in the shipped tables. The task's size and schedule were fixed after trainings of the teacher and of plain regression
alone, before any distilled student was trained.
A killed run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: an installed posekd comes before the sources
    __package__ = "benchmarks.experiments"

from .arms import Experiment, main

TERMS = ("simulated_heatmaps", "scores", "keypoint_tokens", "visual_tokens")
USED: dict[str, tuple[str, ...]] = {
    "none": (),
    "heatmaps": TERMS[:1],
    "scores": TERMS[1:2],
    "heatmaps_scores": TERMS[:2],
    "keypoint_tokens": TERMS[2:3],
    "visual_tokens": TERMS[3:],
    "tokens": TERMS[2:],
    "all": TERMS,
}


def words(used: tuple[str, ...]) -> list[str]:
    """The changes to `distilpose/tiny` for a student that learns from these terms alone."""
    off = [f"--method.{term}=0" for term in TERMS if term not in used]
    return [*off, *([] if "scores" in used else ["--student.overrides.scores=false"])]


ARMS = {"teacher": ("distilpose/tiny_teacher", []), **{arm: ("distilpose/tiny", words(u)) for arm, u in USED.items()}}
COMPARISONS = {f"none to {arm}": ("none", arm) for arm in USED if arm != "none"}
TASK = ["--val_data.images=450"]
EXPERIMENT = Experiment(ARMS, "none", COMPARISONS, TASK, "runs/distilpose_terms")

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, __doc__))
