"""What an evaluation says beside its metric, on any data: errors over all people, PCK, AP at other sigmas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from posekd.data import PoseSource
from posekd.engine.scoring import Report
from posekd.engine.scoring.coco import truth_and_results
from posekd.metrics import NoLabelsError, evaluate_people, paired_bootstrap
from posekd.metrics.coco_notes import OFFICIAL_MAX_DETECTIONS
from posekd.metrics.errors import ErrorResult, Found, assign, bootstrap_pck, keypoint_errors

FACTORS = (0.5, 1.0, 2.0)
"""Times the sigmas: AP depends on them, and guessed ones are off by about that."""
BOX = "longer side of the box"


@dataclass(frozen=True)
class Verdict:
    """What is known of a network on data.

    Attributes:
        found: labelled people and what was found of each.
        by_box: errors relative to the longer side of the box.
        by_pair: errors relative to the distance of two named keypoints; None if none were named.
        ap: factor on the sigmas -> AP; empty where nobody is labelled. Areas are those of the boxes where labels state
            none (MPII, LSP).
    """

    found: Found
    by_box: ErrorResult
    by_pair: ErrorResult | None
    ap: dict[float, float]

    def values(self) -> dict[str, Any]:
        """Plain values for JSON; missed medians are null."""
        return {
            "ap_by_sigmas": {f"{factor:g}": value for factor, value in self.ap.items()},
            "errors_by_box": _plain(self.by_box),
            **({} if self.by_pair is None else {"errors_by_pair": _plain(self.by_pair)}),
        }


@dataclass(frozen=True)
class Difference:
    """How a number differs between two networks on the same images.

    Attributes:
        name: of the number.
        before: of the first network.
        after: of the second.
        low: lower end of the 95 % interval of `after - before` over resampled images.
        high: upper end.
    """

    name: str
    before: float
    after: float
    low: float
    high: float


def judge_report(source: PoseSource, report: Report, pair: tuple[str, str] | None = None) -> Verdict | None:
    """Judges an evaluation.

    Args:
        source: the dataset.
        report: its evaluation.
        pair: two keypoints whose distance PCK is to be measured by, too.

    Returns:
        The verdict; None where nobody is labelled.

    Raises:
        ValueError: a name of `pair` that is no keypoint.
    """
    found = match_people(source, report)
    if found is None:
        return None
    by_pair = None
    if pair is not None:
        by_pair = keypoint_errors(found, found.pair_lengths(*pair), f"distance {pair[0]} to {pair[1]}")
    return Verdict(found, keypoint_errors(found, found.box_lengths(), BOX), by_pair, _ap_at(source, report))


def compare_reports(source: PoseSource, first: Report, second: Report) -> list[Difference]:
    """The differences of two networks on one dataset, with intervals: AP, and PCK by the box."""
    differences = []
    (truth, before), (_, after) = (truth_and_results(source, report.found) for report in (first, second))
    if len(truth["categories"]) == 1 and truth["annotations"]:
        gain = paired_bootstrap(truth, before, after, source.records.skeleton.sigmas)
        differences.append(Difference("AP", gain.before, gain.after, gain.low, gain.high))
    found = [match_people(source, report) for report in (first, second)]
    if found[0] is not None and found[1] is not None:
        differences.append(Difference("PCK@0.1 of the box", *bootstrap_pck(found[0], found[1])))
    return differences


def match_people(source: PoseSource, report: Report) -> Found | None:
    """Labelled people, and the pose of each: of her own box where labelled boxes were cropped, else by OKS.

    Returns:
        None where nobody is labelled.
    """
    records, people = source.records, report.found
    truth, boxes, images, ids, sizes = _labelled(source)
    if not len(truth):
        return None
    poses = people.keypoints[..., :2].double().numpy()
    points = np.full((*truth.shape[:2], 2), np.nan)
    own_boxes = bool((records.keypoints[..., 2] > 0).any()) and bool((people.sample_ids >= 0).all())
    if own_boxes:
        place = {int(i): row for row, i in enumerate(people.sample_ids.tolist())}
        for row, i in enumerate(ids.tolist()):
            if i in place:
                points[row] = poses[place[i]]
    else:
        areas = boxes[:, 2:].prod(1)
        for image in np.unique(images):
            rows, those = np.flatnonzero(images == image), np.flatnonzero(people.image_ids.numpy() == image)
            pairs = assign(truth[rows], areas[rows], poses[those], records.skeleton.sigmas)
            for person, pose in pairs.items():
                points[rows[person]] = poses[those[pose]]
    return Found(records.skeleton.keypoints, truth, points, boxes, images, ids, sizes)


def _labelled(source: PoseSource) -> tuple[Any, Any, Any, Any, Any]:
    """Keypoints, boxes, image ids, annotation ids and areas of the labelled people, also of those without a crop."""
    records = source.records
    truth = _truth(source)
    if truth is None:
        rows = np.flatnonzero((records.keypoints[..., 2] > 0).any(1))
        images = records.image_ids[records.image_rows[rows]]
        return (
            records.keypoints[rows].astype(float),
            records.boxes[rows].astype(float),
            images,
            records.sample_ids[rows],
            None,
        )
    K = records.skeleton.num_keypoints
    people = [a for a in truth["annotations"] if not a.get("iscrowd") and _has_labels(a, K)]
    points = np.array([a["keypoints"] for a in people], float).reshape(-1, K, 3)
    boxes = np.abs(np.array([a["bbox"] for a in people], float).reshape(-1, 4))
    images, ids = (np.array([a[key] for a in people], np.int64) for key in ("image_id", "id"))
    areas = np.array([a.get("area") or box.prod() for a, box in zip(people, boxes[:, 2:], strict=True)], float)
    return np.where(points[..., 2:] > 0, points, 0.0), boxes, images, ids, areas


def _has_labels(annotation: dict[str, Any], K: int) -> bool:
    points = annotation.get("keypoints") or ()
    return len(points) == 3 * K and any(v > 0 for v in points[2::3]) and annotation.get("num_keypoints") != 0


def _truth(source: PoseSource) -> dict[str, Any] | None:
    """COCO's ground truth, where the dataset has one with labels."""
    ask = getattr(source, "coco_ground_truth", None)
    truth: dict[str, Any] | None = ask() if ask is not None else None
    return truth if truth is not None and truth.get("annotations") else None


def ap_per_keypoint(source: PoseSource, report: Report) -> dict[str, float]:
    """AP by each keypoint alone, as if it were the only one that is labelled; empty where data have no AP.

    Returns:
        Name of each keypoint -> AP; NaN for one without a label.
    """
    if not hasattr(source, "coco_ground_truth"):
        return {}
    truth, results = truth_and_results(source, report.found)
    skeleton, most = source.records.skeleton, truth.get("max_detections", OFFICIAL_MAX_DETECTIONS)
    found = {}
    for k, name in enumerate(skeleton.keypoints):
        try:
            found[name] = evaluate_people(_only(truth, k), results, skeleton.sigmas, most).AP
        except NoLabelsError:
            found[name] = float("nan")
    return found


def _only(truth: dict[str, Any], keypoint: int) -> dict[str, Any]:
    """The labels of one keypoint; whoever lacks it is ignored, as COCO's rule has it for people without labels."""
    annotations = []
    for person in truth["annotations"]:
        own = np.array(person.get("keypoints") or (), float).reshape(-1, 3)
        kept = np.zeros_like(own)
        if len(own):
            kept[keypoint] = own[keypoint]
        number = int((kept[:, 2] > 0).sum()) if person.get("num_keypoints") != 0 else 0
        annotations.append({**person, "keypoints": kept.reshape(-1).tolist(), "num_keypoints": number})
    return {**truth, "annotations": annotations}


def _ap_at(source: PoseSource, report: Report) -> dict[float, float]:
    truth, results = truth_and_results(source, report.found)
    sigmas, most = source.records.skeleton.sigmas, truth.get("max_detections", OFFICIAL_MAX_DETECTIONS)
    try:
        return {f: evaluate_people(truth, results, [s * f for s in sigmas], most).AP for f in FACTORS}
    except NoLabelsError:
        return {}


def _plain(result: ErrorResult) -> dict[str, Any]:
    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "length": result.length,
        "people": result.people,
        "missed": result.missed,
        "keypoints": {
            row.name: {
                "labelled": row.labelled,
                "missed": row.missed,
                "median": number(row.median),
                "p90": number(row.p90),
                "median_relative": number(row.median_relative),
                "p90_relative": number(row.p90_relative),
                "pck": {f"{t:g}": number(share) for t, share in row.pck.items()},
            }
            for row in (result.total, *result.keypoints)
        },
    }
