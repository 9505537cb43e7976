"""The COCO keypoint metric: the ten official numbers, by pycocotools, for any number of keypoints."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from pycocotools import coco as pycoco
from pycocotools.cocoeval import COCOeval

from posekd.metrics.coco_files import Labels, Source, read_labels, read_results, resolve_sigmas
from posekd.metrics.coco_notes import OFFICIAL_MAX_DETECTIONS, notes
from posekd.metrics.keypoint_table import KeypointScore, keypoint_scores
from posekd.whole_body import LISTS, is_whole_body

NUMBERS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
"""The ten numbers in the order of `COCOeval.stats`."""


@dataclass(frozen=True)
class PersonScore:
    """The result for one labelled person.

    Attributes:
        image_id: its image.
        annotation_id: its id in the label file.
        area: its labelled area in square pixels (medium is 32^2 to 96^2, large above).
        labelled: number of labelled keypoints.
        oks: the best OKS of any prediction in its image, even one matched to another person; 0 without a prediction.
        found: whether the official greedy assignment matched it at OKS 0.5.
    """

    image_id: int
    annotation_id: int
    area: float
    labelled: int
    oks: float
    found: bool


@dataclass(frozen=True)
class CocoResult:
    """The ten official numbers, each in 0..1, or -1 if no person of that size is labelled (official rule).

    Attributes:
        AP: precision averaged over OKS thresholds 0.50, 0.55 ... 0.95, with at most 20 predictions per image (or
            `max_detections`).
        AP50: at threshold 0.50.
        AP75: at threshold 0.75.
        APM: for people of medium area, 32^2 to 96^2 square pixels.
        APL: for people of large area, above that. (Small people count in AP, but have no number.)
        AR: recall, averaged likewise; AR50, AR75, ARM and ARL correspond to AP50, AP75, APM and APL.
        predictions: number of predictions that were scored.
        people: one entry per labelled person (crowds and people without labelled keypoints are not scored).
        keypoints: one entry per keypoint.
        note: a remark on the numbers, or empty.
    """

    AP: float
    AP50: float
    AP75: float
    APM: float
    APL: float
    AR: float
    AR50: float
    AR75: float
    ARM: float
    ARL: float
    predictions: int = 0
    people: tuple[PersonScore, ...] = ()
    keypoints: tuple[KeypointScore, ...] = ()
    note: str = ""

    def numbers(self) -> dict[str, float]:
        """The ten numbers by name, in the official order."""
        return {name: getattr(self, name) for name in NUMBERS}


def evaluate_coco(
    ground_truth: Mapping[str, Any] | Source,
    results: Sequence[Mapping[str, Any]] | Source,
    sigmas: Sequence[float] | None = None,
    max_detections: int = OFFICIAL_MAX_DETECTIONS,
    whole_body: bool = False,
) -> CocoResult:
    """Scores keypoint results as the COCO server does (pycocotools, `iouType="keypoints"`).

    Neither argument is changed, and nothing is printed.

    Args:
        ground_truth: a COCO keypoint file, or its content. All its images count, also those without results.
            Where several categories have keypoints, as many each, they are scored one by one and averaged.
        results: a list of `{image_id, category_id, keypoints: 3K numbers, score}`, or the JSON file of one.
        sigmas: K OKS constants; default: COCO's for COCO's 17 keypoints, else 0.05 each with a warning.
        max_detections: predictions of an image and category that are counted, those with the highest scores; the
            official rule's are 20.
        whole_body: score all of COCO-WholeBody's keypoints, as its own evaluation does: in files the 133 are in five
            lists, which are joined.

    Raises:
        NoLabelsError: the ground truth has no annotations (test-dev).
        ValueError: results for images that the ground truth does not list, NaN, a wrong number of keypoints
            or sigmas, labels that cannot be scored, or `max_detections` below 1.
    """
    labels = read_labels(ground_truth, whole_body=whole_body)
    constants = resolve_sigmas(labels, sigmas)
    return score_labels(labels, read_results(results, labels), constants, max_detections)


def score_labels(
    labels: Labels,
    detections: list[dict[str, Any]],
    constants: Sequence[float],
    max_detections: int = OFFICIAL_MAX_DETECTIONS,
) -> CocoResult:
    """What `evaluate_coco` gives for labels and results that were read already."""
    if max_detections < 1:
        raise ValueError(f"max_detections must be 1 or more, got {max_detections}")
    run = run_cocoeval(labels, detections, np.asarray(constants), max_detections)
    people, pairs = _people(labels, run)
    by_id = {a["id"]: a for a in labels.annotations}
    table = keypoint_scores(
        labels.keypoints,
        constants,
        [by_id[i] for i in people],
        [(by_id[gt], detections[dt - 1]) for gt, dt in pairs],
    )
    numbers: dict[str, Any] = {name: float(v) for name, v in zip(NUMBERS, run.stats, strict=True)}
    return CocoResult(
        **numbers,
        predictions=len(detections),
        people=tuple(people.values()),
        keypoints=table,
        note=notes([by_id[i] for i in people], detections, constants, max_detections),
    )


def _quiet(cls: type, *methods: str) -> Any:
    """A subclass whose `methods` do not print, as pycocotools does while it works.

    They run the same code with another `print` in their module's names. (Replacing `sys.stdout` meanwhile
    would also silence other threads, and can crash one that is printing: CPython then frees its stream.)
    """
    names = {**vars(sys.modules[cls.__module__]), "print": lambda *_, **__: None}
    originals = {m: getattr(cls, m) for m in methods}
    copies = {m: FunctionType(f.__code__, names, m, f.__defaults__, f.__closure__) for m, f in originals.items()}
    names[cls.__name__] = type(cls.__name__, (cls,), copies)  # also for instances that they make themselves
    return names[cls.__name__]


_Index = _quiet(pycoco.COCO, "createIndex", "loadRes")
_Eval = _quiet(COCOeval, "evaluate", "accumulate", "summarize")


def run_cocoeval(
    labels: Labels,
    detections: list[dict[str, Any]],
    sigmas: np.ndarray | None,
    max_detections: int = OFFICIAL_MAX_DETECTIONS,
) -> COCOeval:
    """The finished evaluation of pycocotools, which prints nothing: of keypoints, or of boxes where sigmas is None."""
    truth = _Index()
    truth.dataset = {
        "images": [{"id": i} for i in labels.image_ids],
        "categories": list(labels.categories),
        "annotations": list(labels.annotations),
    }
    truth.createIndex()
    if detections:
        found = truth.loadRes(detections)  # numbers the detections from 1
        if is_whole_body(labels.keypoints):
            _take_areas_of_bodies(found.dataset["annotations"])
    else:  # loadRes looks at the first result
        found = _Index()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
    run = _Eval(truth, found, "bbox" if sigmas is None else "keypoints")
    official = run.params.maxDets
    if sigmas is not None:
        run.params.kpt_oks_sigmas = sigmas  # hard-coded to COCO's 17 otherwise
        run.params.maxDets = [max_detections]
    run.evaluate()
    run.accumulate()
    run.params.maxDets = official  # `summarize` looks its one entry up by this number
    run.summarize()
    return run


def _take_areas_of_bodies(detections: list[dict[str, Any]]) -> None:
    """COCO-WholeBody's evaluation takes detections' areas from the body's keypoints, a list of their own there."""
    for detection in detections:
        points = np.asarray(detection["keypoints"], np.float64).reshape(-1, 3)[LISTS["keypoints"], :2]
        detection["area"] = float(np.ptp(points, axis=0).prod())


def _people(labels: Labels, run: COCOeval) -> tuple[dict[int, PersonScore], list[tuple[int, int]]]:
    """Scored people by (renumbered) annotation id, and the (annotation, detection) ids matched at OKS 0.5."""
    everyone = run.params.areaRng[0]
    matched: dict[int, int] = {}
    scored: set[int] = set()
    for image in run.evalImgs:
        if image is None or image["aRng"] != everyone:
            continue
        for gt, dt, ignored in zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"], strict=True):
            if not ignored:
                scored.add(gt)
                if dt:
                    matched[gt] = int(dt)
    groups = defaultdict(list)
    for annotation in labels.annotations:
        groups[annotation["image_id"], annotation["category_id"]].append(annotation)
    people = {}
    for key, group in groups.items():
        similarity = np.asarray(run.ious[key]).reshape(-1, len(group))  # predictions x people
        best = similarity.max(axis=0, initial=0.0)
        for a, oks in zip(group, best, strict=True):
            if a["id"] in scored:
                person = (a["image_id"], a["source_id"], a["area"], int(a["num_keypoints"]), float(oks))
                people[a["id"]] = PersonScore(*person, found=a["id"] in matched)
    return people, sorted(matched.items())
