"""MPII's multi-person AP, and files of the people found in groups: JSON, and a `.mat` of structs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from posekd.coco_rules import numbers, read_json, whole
from posekd.data import PoseRecords, PoseSource
from posekd.data.sources.matlab import save_mat, scipy_io, struct_array
from posekd.data.sources.mpii_groups import Group, MpiiGroups, MpiiGroupsSettings, read_groups
from posekd.engine.scoring.base import Metric, NotScoredError, Score
from posekd.files import write_atomically
from posekd.metrics import GroupsResult, evaluate_groups
from posekd.skeleton import MPII
from posekd.structures import Instances
from posekd.viz.tables import print_groups

K = MPII.num_keypoints
Key = tuple[str, int]
"""Name of the image, and number of the group in it."""


def found_in_groups(source: PoseSource, people: Instances) -> list[dict[str, Any]]:
    """The people of each group as plain values, in pixels of the whole image that count from 0.

    Returns:
        `{image, group, people: [{keypoints: 48 numbers, score}]}`; a keypoint's score is its own times that of its
        person's box; coordinates to a thousandth of a pixel.
    """
    groups, windows = cast(MpiiGroups, source).groups, cast(MpiiGroups, source).windows
    rows: dict[int, list[int]] = {}
    for row, image_id in enumerate(people.image_ids.tolist()):
        rows.setdefault(image_id, []).append(row)
    keypoints, scores = people.keypoints.double().numpy().copy(), people.scores.tolist()
    found = keypoints[..., 2] > 0
    keypoints[..., 2] *= people.box_scores.double().numpy()[:, None]
    for place, own in rows.items():
        keypoints[own, :, :2] += windows[place, :2]
    keypoints = np.where(found[..., None], keypoints.round(6), 0.0)
    keypoints[..., :2] = keypoints[..., :2].round(3)
    return [
        {
            "image": group.image,
            "group": group.number,
            "people": [
                {"keypoints": keypoints[row].reshape(-1).tolist(), "score": round(scores[row], 6)}
                for row in rows.get(place, ())
            ],
        }
        for place, group in enumerate(groups)
    ]


def score_groups(groups: Sequence[Group], found: Mapping[Key, np.ndarray]) -> Score:
    """Scores the people found, `[m, 16, 3]` for each group.

    Raises:
        NotScoredError: nobody is labelled, or nobody has a box of the head.
        ValueError: a labelled group that the predictions do not list.
    """
    labelled = [group for group in groups if len(group.rows)]
    if not labelled:
        raise NotScoredError("no labels")
    absent = [group for group in labelled if (group.image, group.number) not in found]
    if absent:
        first = absent[0]
        raise ValueError(
            f"the predictions lack {len(absent)} of {len(labelled)} groups, first group {first.number} of "
            f"{first.image}: list every group, also where nobody is found"
        )
    known = [np.isfinite(group.heads) for group in labelled]
    if not any(map(np.any, known)):
        raise NotScoredError(
            "no person has a head box, so there is nothing to divide by; give `head_boxes`, HRNet's gt_valid.mat"
        )
    truth = [
        (group.points[own], group.visibility[own], group.heads[own]) for group, own in zip(labelled, known, strict=True)
    ]
    result = evaluate_groups(truth, [found[group.image, group.number] for group in labelled])
    headless = sum(int((~own).sum()) for own in known)
    everybody = sum(map(len, known))
    note = f"{headless} of {everybody} people have no head box: not scored" if headless else ""
    return Score({"mAP": float(result.AP[-1]), **_named(result)}, result, note)


def _named(result: GroupsResult) -> dict[str, float]:
    return {name: float(values[-1]) for name, values in result.totals().items()}


def _as_arrays(entries: Sequence[Mapping[str, Any]]) -> dict[Key, np.ndarray]:
    return {
        (entry["image"], entry["group"]): np.array(
            [person["keypoints"] for person in entry["people"]], np.float64
        ).reshape(-1, K, 3)
        for entry in entries
    }


def _score(source: PoseSource, people: Instances) -> Score:
    return score_groups(cast(MpiiGroups, source).groups, _as_arrays(found_in_groups(source, people)))


def _write(source: PoseSource, people: Instances, path: Path) -> None:
    found = found_in_groups(source, people)
    if path.suffix == ".mat":
        save_mat(path, {"pred": struct_array([_struct(entry) for entry in found])})
    else:
        write_atomically(path, json.dumps(found))


def _struct(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A group as MPII's files have images, counting pixels from 1: `annorect(r).annopoints.point(j)`."""
    rects = []
    for person in entry["people"]:
        points = [
            {"x": x + 1, "y": y + 1, "id": k, "score": score}
            for k, (x, y, score) in enumerate(np.reshape(person["keypoints"], (K, 3)).tolist())
            if score > 0
        ]
        point = struct_array(points) if points else np.zeros((0, 0))
        rects.append({"annopoints": {"point": point}, "score": person["score"]})
    people = struct_array(rects) if rects else np.zeros((0, 0))
    return {"image": {"name": entry["image"]}, "group": entry["group"], "annorect": people}


def _check_file(source: PoseSource, path: Path) -> None:
    if path.suffix == ".mat":
        scipy_io(f"{path} would be a MATLAB file")


def read_found(path: Path) -> dict[Key, np.ndarray]:
    """Reads what `posekd eval --results FILE.json` has written.

    Raises:
        FileNotFoundError, ValueError: the file is missing or malformed; the message names group and value.
    """
    content = read_json(path, "score_only")
    if not isinstance(content, list):
        raise ValueError(f"{path} must be a list of groups with image, group and people")
    entries = []
    for row, entry in enumerate(content):
        if not isinstance(entry, Mapping) or not {"image", "group", "people"} <= entry.keys():
            raise ValueError(f"{path}: entry {row} must have image, group and people, got {entry!r:.80}")
        who = f"{path}: group {entry['group']!r} of {entry['image']!r}"
        if not isinstance(entry["people"], list) or not all(isinstance(p, Mapping) for p in entry["people"]):
            raise ValueError(f"{who}: people must be a list of objects with keypoints, got {entry['people']!r:.80}")
        people = [
            {"keypoints": numbers(person.get("keypoints"), 3 * K, f"{who}: keypoints (x, y, score)")}
            for person in entry["people"]
        ]
        entries.append({"image": str(entry["image"]), "group": whole(entry["group"], who), "people": people})
    found = _as_arrays(entries)
    if len(found) < len(entries):
        raise ValueError(f"{path} lists {len(entries) - len(found)} groups twice")
    return found


def _score_file(settings: MpiiGroupsSettings, labels: PoseRecords | None, path: Path) -> Score:
    return score_groups(read_groups(settings), read_found(path))


def _values(score: Score) -> dict[str, Any]:
    result = cast(GroupsResult, score.result)
    columns = {name: None if np.isnan(value) else value for name, value in result.columns().items()}
    return {**score.numbers, "columns": columns, "groups": result.groups, "people": result.people, "note": score.note}


def _show(score: Score, console: Console, title: str) -> None:
    print_groups(score.result, console, title)


MPII_GROUPS = Metric(
    scale=100.0,
    given=False,
    score=_score,
    write=_write,
    check_file=_check_file,
    score_file=_score_file,
    values=_values,
    show=_show,
)
