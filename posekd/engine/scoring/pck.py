"""PCK of a dataset's labelled persons: by head size (MPII), by torso (LSP), and their prediction files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from posekd.data import PoseRecords, PoseSource
from posekd.engine.scoring.base import Metric, NotScoredError, Score
from posekd.engine.scoring.pck_files import check_results_file, read_predictions, rows_of, write_predictions
from posekd.lengths import torso_lengths
from posekd.metrics import PckResult, pck, pckh
from posekd.structures import Instances
from posekd.viz.curves import plot_pck
from posekd.viz.tables import print_pck, print_torso

TORSO_THRESHOLD = 0.5  # ELPN, Equation 5
TORSO = "torso (left shoulder and right hip)"

Rule = Callable[..., PckResult]


def score_by_length(
    keypoints: np.ndarray,
    sample_ids: np.ndarray,
    records: PoseRecords,
    lengths: np.ndarray,
    rule: Rule,
    length: str,
    hint: str = "",
) -> tuple[PckResult, str]:
    """Scores poses by a reference length of each person.

    Args:
        keypoints: `[P, K, 2 or more]` (x, y, ...) in pixels of the images, counting from 0.
        sample_ids: `[P]`, the person of each pose.
        records: the N people.
        lengths: `[N]` in pixels, NaN where it is not known.
        rule: `metrics.pckh` or `metrics.pck`.
        length: name of the length, for messages.
        hint: what to do if no person has one.

    Returns:
        The result, and a remark on the numbers or an empty string.

    Raises:
        NotScoredError: no person can be scored.
        ValueError: poses of people that the records do not list, or two of one person.
    """
    rows = rows_of(sample_ids, records)
    if not len(rows):
        raise NotScoredError("no predictions")
    points, known = records.keypoints[rows].astype(np.float64), lengths[rows]
    labelled = (points[..., 2] > 0).any(axis=1)
    scored = labelled & np.isfinite(known)
    if not labelled.any():
        raise NotScoredError("no labels")
    if not scored.any():
        raise NotScoredError(f"no person has a {length}, so there is nothing to divide by{hint}")
    unscored = int((labelled & ~scored).sum())
    note = f"{unscored} of {int(labelled.sum())} people have no {length}: not scored" if unscored else ""
    found = np.asarray(keypoints, np.float64)[scored, :, :2]
    result = rule(found, points[scored, :, :2], points[scored, :, 2], known[scored], skeleton=records.skeleton)
    return result, note


def score_pckh(keypoints: np.ndarray, sample_ids: np.ndarray, records: PoseRecords) -> tuple[PckResult, str]:
    """PCKh@0.5, see `score_by_length`."""
    assert records.reference_lengths is not None
    hint = "; give `head_boxes`, HRNet's gt_valid.mat"
    return score_by_length(keypoints, sample_ids, records, records.reference_lengths, pckh, "head box", hint)


def score_pck(keypoints: np.ndarray, sample_ids: np.ndarray, records: PoseRecords) -> tuple[PckResult, str]:
    """PCK@0.2 of the records' reference length, the torso; see `score_by_length`."""
    assert records.reference_lengths is not None
    return score_by_length(keypoints, sample_ids, records, records.reference_lengths, pck, TORSO)


def score_torso(keypoints: np.ndarray, sample_ids: np.ndarray, records: PoseRecords) -> tuple[PckResult, str]:
    """PCK@0.5 of the torso, ELPN's Equation 5. Persons without a labelled torso are not counted."""
    lengths = torso_lengths(records.keypoints.astype(np.float64), records.skeleton)
    rule = partial(pck, threshold=TORSO_THRESHOLD)
    return score_by_length(keypoints, sample_ids, records, lengths, rule, TORSO)[0], ""


ScorePoses = Callable[[np.ndarray, np.ndarray, PoseRecords], tuple[PckResult, str]]


def _as_score(result: PckResult, note: str, records: PoseRecords) -> Score:
    return Score(result.numbers(), (result, records.skeleton.keypoints), note)


def _as_torso_score(result: PckResult, note: str, records: PoseRecords) -> Score:
    return Score({f"torso {result.name}": result.mean}, (result, records.skeleton.keypoints), note)


def _values(score: Score) -> dict[str, Any]:
    """A score as plain values, percent everywhere; null for keypoints that no person has labelled."""
    result, keypoints = score.result
    return {
        **result.numbers(),
        "hrnet_mean_at_0.11": result.hrnet_mean_at_01,
        "people": result.people,
        "keypoints": {
            name: {"labelled": int(count), "found": None if np.isnan(share) else float(share)}
            for name, count, share in zip(keypoints, result.counts, result.per_joint, strict=True)
        },
        "thresholds": result.thresholds.round(2).tolist(),
        "curve": result.curve.tolist(),
        "note": score.note,
    }


def _metric(
    score_poses: ScorePoses,
    as_score: Callable[[PckResult, str, PoseRecords], Score],
    show: Callable[[Score, Console, str], None],
    curve: Callable[[Score, Path, str], None] | None,
) -> Metric:
    def score(source: PoseSource, people: Instances) -> Score:
        records = source.records
        return as_score(*score_poses(people.keypoints.numpy(), people.sample_ids.numpy(), records), records)

    def score_file(settings: Any, labels: PoseRecords | None, path: Path) -> Score:
        assert labels is not None
        keypoints, ids = read_predictions(path, labels)
        found = as_score(*score_poses(keypoints, ids, labels), labels)
        absent = len(labels) - len(ids)
        missing = f"{absent} of {len(labels)} people have no prediction: not scored" if absent else ""
        return replace(found, note="; ".join(note for note in (found.note, missing) if note))

    return Metric(
        scale=100.0,
        given=True,
        score=score,
        write=write_predictions,
        check_file=check_results_file,
        score_file=score_file,
        values=_values,
        show=show,
        curve=curve,
    )


def _show(hrnet_mean: bool) -> Callable[[Score, Console, str], None]:
    def show(score: Score, console: Console, title: str) -> None:
        result, keypoints = score.result
        print_pck(result, keypoints, console, title, hrnet_mean=hrnet_mean)

    return show


def _show_torso(score: Score, console: Console, title: str) -> None:
    print_torso(score.result[0], console)


def _curve(unit: str) -> Callable[[Score, Path, str], None]:
    def draw(score: Score, path: Path, title: str) -> None:
        plot_pck(score.result[0], path, title, unit=unit)

    return draw


PCKH = _metric(score_pckh, _as_score, _show(True), _curve("head size"))
PCK = _metric(score_pck, _as_score, _show(False), _curve("torso"))
PCK_TORSO = _metric(score_torso, _as_torso_score, _show_torso, None)
