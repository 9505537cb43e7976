"""What an evaluation gives: its report, and results in COCO's format, scored and written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from posekd.data import CocoSource, PoseSource
from posekd.files import write_atomically
from posekd.metrics import CocoResult, NoLabelsError, PckResult, evaluate_people


@dataclass(frozen=True)
class EvalReport:
    """An evaluation.

    Attributes:
        coco: the ten numbers and more; None where the data have no labels, or are scored by PCK.
        results: the poses in COCO's results format, or as `evaluate_pck.predictions` gives them.
        persons: crops that went through the network.
        seconds: for all of it: loading, network, decoding, scoring.
        note: a sentence where the numbers need one, else empty.
        pck: PCKh@0.5 (MPII) or PCK@0.2 (LSP); None where the data have no labels, or are scored by AP.
        torso: of MPII also PCK@0.5 by the torso, ELPN's Equation 5.
    """

    coco: CocoResult | None
    results: list[dict[str, Any]]
    persons: int
    seconds: float
    note: str = ""
    pck: PckResult | None = None
    torso: PckResult | None = None

    def numbers(self) -> dict[str, float] | None:
        """The scores by name, the main one first (AP in 0..1; PCK in percent); None where nothing was scored."""
        if self.coco is not None:
            return self.coco.numbers()
        if self.pck is None:
            return None
        torso = {f"torso {self.torso.name}": self.torso.mean} if self.torso is not None else {}
        return {**self.pck.numbers(), **torso}


def score_coco(
    results_of: Callable[[int], list[dict[str, Any]]],
    source: PoseSource,
    results_file: str | os.PathLike[str] | None,
    count: int,
) -> EvalReport:
    """Writes results and scores them by COCO's metric (CrowdPose's, where images have a crowd index).

    Args:
        results_of: from the label file's id of the category to the results in COCO's format.
        source: a `CocoSource`.
        results_file: where to write the results, if anywhere.
        count: what `EvalReport.persons` shall say.
    """
    truth = cast(CocoSource, source).coco_ground_truth()
    results = results_of(truth["categories"][0]["id"] if truth.get("categories") else 1)
    if results_file is not None:
        write_results(results, results_file)
    try:
        coco = evaluate_people(truth, results, source.records.skeleton.sigmas)
    except NoLabelsError:
        return EvalReport(None, results, count, 0.0, not_scored("no labels", results_file))
    return EvalReport(coco, results, count, 0.0, coco.note)


def not_scored(why: str, results_file: str | os.PathLike[str] | None) -> str:
    """The note of a report without numbers, and why."""
    return f"{why}: results written, not scored" if results_file is not None else f"{why}: not scored"


def to_thousandths(keypoints: np.ndarray) -> np.ndarray:
    """float64 keypoints `[..., K, 3]`, the coordinates rounded to a thousandth of a pixel."""
    rounded = keypoints.astype(np.float64)
    rounded[..., :2] = rounded[..., :2].round(3)
    return rounded


def coco_result(image_id: int, category_id: int, keypoints: np.ndarray, score: float) -> dict[str, Any]:
    """A person `[K, 3]` in COCO's results format."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "keypoints": keypoints.reshape(-1).tolist(),
        "score": float(score),
    }


def write_results(results: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes results as a JSON file that the COCO server takes, whole or not at all."""
    write_atomically(path, json.dumps(list(results)))
