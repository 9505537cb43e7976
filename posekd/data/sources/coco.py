"""COCO-format keypoints with any number of keypoints, read into plain arrays.

Which persons count follows deep-high-resolution-net, lib/dataset/coco.py: crowds and persons without a
labelled keypoint are left out, boxes are clipped to the image, a box without area is left out. Detector boxes
are taken as they are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posekd import coco_rules
from posekd.coco_rules import Remarks
from posekd.data.images import missing_files, read_rgb
from posekd.data.inspection.judge import looks_normalised
from posekd.data.outlines import outline_of
from posekd.data.records import PoseRecords, Regions
from posekd.data.regions import ignored_regions
from posekd.data.sources.coco_json import (
    labelled_points,
    load_labels,
    pick_categories,
    unique_images,
)
from posekd.data.sources.detections import read_detections
from posekd.skeleton import COCO, Skeleton, skeleton_from_category
from posekd.whole_body import PARTS

KeepImages = Literal["labelled", "annotated", "all"]


@dataclass(frozen=True)
class CocoSettings:
    """Where a COCO-format dataset lies and what to take from it.

    Attributes:
        images: folder that the annotations' file names are relative to.
        annotations: the JSON file.
        detections: a detector's result file (HRNet format: a list of `image_id`, `category_id`, `bbox`,
            `score`) to take boxes from, instead of the labels.
        detection_threshold: detections with a lower score are left out; in the detector's units, usually 0..1.
        category: name of the category, if several have keypoints. Without it several of one skeleton are taken
            together (AP-10K's species); AP is then the mean of theirs, or, where a network that sees whole images does
            not tell them apart, that of all as one.
        flip_pairs: pairs of keypoints that a mirror exchanges, by name or by index from 0; inferred from the names
            if None.
        sigmas: K OKS constants. If None: the official ones of COCO's or CrowdPose's keypoints, else a default, with a
            warning.
        image_ids: take only these images.
        on_missing_image: "refuse", or "skip" images whose file is not there, with a counted warning.
        keep_images: which images to keep: those with a "labelled" person, those that are "annotated" at all (crowds and
            people without keypoints among them), or "all". None is what the network needs: top-down the labelled
            ones, bottom-up the annotated ones for training and all for evaluation.
        apply_orientation: turn images as their EXIF tags say, for labels that were drawn on what a viewer shows;
            COCO's were drawn on the stored pixels.
        upper_body: names of the upper half's keypoints, for half-body augmentation; inferred from the names if None.
        whole_body: join COCO-WholeBody's lists (`keypoints`, `foot_kpts`, `face_kpts`, `lefthand_kpts`,
            `righthand_kpts`) to one set of 133 keypoints; otherwise only `keypoints` is read.
        max_detections: predictions of an image that its AP counts; the official rule's are 20.
        keypoints: their names, for a file without labels that lists none; COCO's 17 if None. (`posekd eval` takes those
            of the checkpoint.)
    """

    images: str
    annotations: str
    detections: str | None = None
    detection_threshold: float = 0.0
    category: str | None = None
    flip_pairs: list[tuple[str | int, str | int]] | None = None
    sigmas: list[float] | None = None
    image_ids: list[int] | None = None
    on_missing_image: Literal["refuse", "skip"] = "refuse"
    keep_images: KeepImages | None = None
    apply_orientation: bool = False
    upper_body: list[str] | None = None
    keypoints: list[str] | None = None
    whole_body: bool = False
    max_detections: int = 20

    def __post_init__(self) -> None:
        if self.max_detections < 1:
            raise ValueError(f"max_detections must be 1 or more, got {self.max_detections}")


class CocoKeypoints:
    """A COCO-format dataset. A `PoseSource`."""

    def __init__(self, settings: CocoSettings) -> None:
        """Reads the annotation file; decodes nothing.

        Raises:
            FileNotFoundError: the annotation file, the image folder or an image is missing.
            ValueError: the file is malformed; the message names file, annotation and value.
        """
        self.settings = settings
        self._folder = Path(settings.images)
        label_file = Path(settings.annotations)
        remarks: Remarks = {}
        labels = load_labels(label_file, remarks, settings.whole_body)
        if not self._folder.is_dir():
            raise FileNotFoundError(f"image folder {self._folder} does not exist (setting `images`)")
        images = _chosen_images(labels, settings)
        keep = settings.keep_images or "labelled"
        names = settings.keypoints or COCO.keypoints
        categories = pick_categories(labels, settings.category, label_file, names)
        category = categories[0]
        skeleton = skeleton_from_category(
            category, flip_pairs=settings.flip_pairs, sigmas=settings.sigmas, upper_body=settings.upper_body
        )
        own = _own(labels, categories, label_file, remarks)
        if settings.detections is None and keep != "all" and "annotations" not in labels:
            raise ValueError(
                f"{label_file} has no 'annotations' (a split without labels?): give `detections` for the boxes"
            )
        crops = keep if settings.detections is None else "all"  # else nobody is cropped by labels
        left_out: Counter[str] = Counter()
        persons = _labelled_persons(labels, own, images, skeleton, label_file, crops, remarks, left_out)
        cropped = {person.sample_id for person in persons}
        if settings.detections is not None:
            persons = _detected_persons(settings, images, {c["id"] for c in categories})
            left_out.clear()
        needed = {person.image_id for person in persons}
        if keep != "labelled":
            needed = set(images) if keep == "all" else needed | {a["image_id"] for a in own}
        listed = {i: os.path.join(self._folder, images[i]["file_name"]) for i in images if i in needed}
        absent = missing_files(list(listed.values()), settings.annotations, settings.on_missing_image)
        self._absent = frozenset(i for i, path in listed.items() if path in absent)
        persons = [person for person in persons if person.image_id not in self._absent]
        images = {i: images[i] for i in images if i in needed and i not in self._absent}
        if not images:
            raise ValueError(_nothing_left(settings, labels, len(absent)) + _hint(own))
        self._files = np.array([entry["file_name"] for entry in images.values()])
        ignored = Regions() if keep == "labelled" else ignored_regions(own, images, str(label_file), remarks)
        self.records = replace(_to_records(persons, images, skeleton, ignored), left_out=dict(left_out))
        self._cropped = cropped if settings.detections is None else None
        self._categories = {p.sample_id: p.category_id for p in persons} if len(categories) > 1 else {}
        coco_rules.tell(remarks)
        self._tell_corners()

    def _tell_corners(self) -> None:
        records = self.records
        boxes = records.boxes if records.stated_boxes is None else records.stated_boxes
        name = self.settings.detections or self.settings.annotations
        coco_rules.tell_corners(boxes, records.image_sizes[records.image_rows], records.keypoints, name)

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes image `row`, a JPEG smaller if asked for, and checks its stated size: uint8 RGB `[H, W, 3]`."""
        height, width = self.records.image_sizes[row].tolist()
        return read_rgb(
            self._folder / str(self._files[row]), (height, width), reduction, self.settings.apply_orientation
        )

    def image_name(self, row: int) -> str:
        """Path of image `row`."""
        return str(self._folder / str(self._files[row]))

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotation file's images (each once), annotations (crowds too) and categories.

        Read anew at each call: training must not carry a gigabyte of polygons into every worker. People whom scoring
        counts and who have no crop here are listed by id under `uncropped`, if there are any; `max_detections` and
        `whole_body` are there where they are not the usual ones, and where several categories are meant
        `sample_categories`, from sample id to category id.
        """
        file = Path(self.settings.annotations)
        labels = load_labels(file, {}, self.settings.whole_body)
        names = self.records.skeleton.keypoints
        categories = pick_categories(labels, self.settings.category, file, names)
        for category in categories:
            category.setdefault("keypoints", list(self.records.skeleton.keypoints))
        images = _chosen_images(labels, self.settings)
        kept = {i: entry for i, entry in images.items() if i not in self._absent}
        annotations = [a for a in _own(labels, categories, file, {}) if a.get("image_id") in kept]
        truth: dict[str, Any] = {"images": list(kept.values()), "annotations": annotations, "categories": categories}
        if self.settings.max_detections != CocoSettings.max_detections:
            truth["max_detections"] = self.settings.max_detections
        if self.settings.whole_body:
            truth["whole_body"] = True
        if self._categories:
            truth["sample_categories"] = self._categories
        uncropped = [] if self._cropped is None else [a["id"] for a in annotations if self._is_uncropped(a)]
        return {**truth, "uncropped": uncropped} if uncropped else truth

    def _is_uncropped(self, annotation: Mapping[str, Any]) -> bool:
        if self._cropped is None or annotation["id"] in self._cropped or annotation.get("iscrowd"):
            return False
        if (annotation.get("area") or 0) < 0:  # in none of pycocotools' ranges of size
            return False
        count = annotation.get("num_keypoints")
        return bool(any(v > 0 for v in (annotation.get("keypoints") or ())[2::3]) if count is None else count)


@dataclass(frozen=True)
class _Person:
    """One row of `PoseRecords`, before it becomes arrays."""

    image_id: int
    sample_id: int
    category_id: int
    box: tuple[float, float, float, float]
    score: float = 1.0
    keypoints: np.ndarray | None = None
    outline: np.ndarray | None = None
    stated: tuple[float, ...] | None = None


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float] | None:
    """HRNet's clean box: clipped to pixel indices 0..width-1, 0..height-1.

    Returns:
        (x, y, width, height), each side one pixel shorter than the label's as in the official code; None if
        nothing of the box lies in the image.
    """
    x, y, w, h = box
    x1, y1 = max(0.0, x), max(0.0, y)
    x2 = min(width - 1.0, x1 + max(0.0, w - 1))
    y2 = min(height - 1.0, y1 + max(0.0, h - 1))
    # One side may be 0, because the aspect ratio restores it; a box of two zero sides has no scale.
    if x2 < x1 or y2 < y1 or (x2 == x1 and y2 == y1):
        return None
    return x1, y1, x2 - x1, y2 - y1


def _chosen_images(labels: Mapping[str, Any], settings: CocoSettings) -> dict[int, dict[str, Any]]:
    images = unique_images(labels, Path(settings.annotations))
    if settings.image_ids is None:
        return images
    unknown = [i for i in settings.image_ids if i not in images]
    if unknown:
        raise ValueError(f"image_ids: {unknown[:5]} are not in {settings.annotations}")
    chosen = set(settings.image_ids)
    return {i: entry for i, entry in images.items() if i in chosen}


def _own(
    labels: Mapping[str, Any], categories: Sequence[Mapping[str, Any]], file: Path, remarks: Remarks
) -> list[dict[str, Any]]:
    """Annotations of the categories; lists of keypoints that are not read are remarked on."""
    for annotation in labels.get("annotations", ()):
        if not PARTS.isdisjoint(annotation):
            who = f"{coco_rules.who_is(annotation, str(file))} has {sorted(PARTS & annotation.keys())}"
            what = "these lists are not read, only `keypoints` is; set whole_body: true to use all 133 keypoints"
            coco_rules.remark(remarks, what, who)
    listed = [entry["id"] for entry in labels["categories"]]
    return coco_rules.of_categories(
        labels.get("annotations", ()), [c["id"] for c in categories], listed, str(file), remarks
    )


def _labelled_persons(
    labels: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    images: Mapping[int, Mapping[str, Any]],
    skeleton: Skeleton,
    file: Path,
    keep: KeepImages,
    remarks: Remarks,
    left_out: Counter[str],
) -> list[_Person]:
    """Whom to learn from; all annotations are checked, so that what scoring would refuse is refused here.

    Who is left out is counted in `left_out`, by the reason.
    """
    known = images.keys() | unique_images(labels, file).keys()
    crowded = any("crowdIndex" in image for image in labels["images"])
    persons, scored = [], []
    for raw in own:
        who = coco_rules.who_is(raw, str(file))
        if raw.get("image_id") not in known:
            raise ValueError(f"{who} names image {raw.get('image_id')!r}, which is not among the file's images")
        if raw["image_id"] not in images:
            continue
        scored.append(raw)
        share = coco_rules.AREA_OF_BOX if crowded else None
        annotation = coco_rules.check_annotation(raw, skeleton.keypoints, who, remarks, strict=True, box_share=share)
        keypoints = None if annotation["iscrowd"] else labelled_points(annotation)
        if keypoints is None:
            left_out["crowds" if annotation["iscrowd"] else "without a labelled keypoint"] += 1
            continue
        image = images[annotation["image_id"]]
        box = coco_rules.upright(annotation["bbox"])
        if list(box) != annotation["bbox"]:
            whose = f"{who} with the box {annotation['bbox']}"
            coco_rules.remark(remarks, "the box was drawn from right to left or upwards: turned round", whose)
        clean = clip_box(box, image["width"], image["height"])
        if keep != "labelled":  # nobody is cropped, so nobody needs a good box
            clean = clean or box
        elif clean is None or not annotation["area"] > 0:
            whose = f"{who} with the area {annotation['area']:g} and the box {annotation['bbox']}"
            coco_rules.remark(remarks, f"no area, or none inside the image: {coco_rules.LEFT_OUT}", whose)
            left_out["without an area, or with none inside the image"] += 1
            continue
        outline = None if keep == "labelled" else outline_of(raw.get("segmentation"), box)
        persons.append(
            _Person(
                annotation["image_id"],
                annotation["id"],
                annotation["category_id"],
                clean,
                1.0,
                keypoints,
                outline,
                stated=tuple(annotation["bbox"]),
            )
        )
    coco_rules.refuse_repeated(scored, str(file))
    return persons


def _detected_persons(settings: CocoSettings, images: Mapping[int, Any], categories: set[int]) -> list[_Person]:
    listed = settings.annotations if settings.image_ids is None else None
    found = read_detections(Path(str(settings.detections)), images, categories, settings.detection_threshold, listed)
    return [_Person(d.image_id, d.row, d.category_id, d.box, d.score) for d in found]


def _to_records(
    persons: list[_Person], images: Mapping[int, Mapping[str, Any]], skeleton: Skeleton, ignored: Regions
) -> PoseRecords:
    rows = {image_id: row for row, image_id in enumerate(images)}
    persons = sorted(persons, key=lambda person: rows[person.image_id])  # stable: file order within an image
    K = skeleton.num_keypoints
    unlabelled = np.zeros((K, 3), np.float32)
    outlines = [p.outline for p in persons if p.outline is not None]
    return PoseRecords(
        skeleton=skeleton,
        image_ids=np.array(list(images), np.int64),
        image_sizes=np.array([(e["height"], e["width"]) for e in images.values()], np.int64).reshape(-1, 2),
        image_rows=np.array([rows[p.image_id] for p in persons], np.int64),
        keypoints=np.array([unlabelled if p.keypoints is None else p.keypoints for p in persons], np.float32).reshape(
            -1, K, 3
        ),
        boxes=np.array([p.box for p in persons], np.float32).reshape(-1, 4),
        box_scores=np.array([p.score for p in persons], np.float32),
        sample_ids=np.array([p.sample_id for p in persons], np.int64),
        outlines=np.array(outlines) if outlines and len(outlines) == len(persons) else None,
        ignored=ignored,
        stated_boxes=np.array([p.box if p.stated is None else p.stated for p in persons], np.float32).reshape(-1, 4),
    )


def _hint(annotations: Sequence[Mapping[str, Any]]) -> str:
    """What explains that nobody is left, if the boxes do."""
    boxes = [a["bbox"] for a in annotations if isinstance(a.get("bbox"), list)]
    if not looks_normalised(np.asarray(boxes, float).reshape(-1)):
        return ""
    return (
        ". The boxes lie between 0 and 1, as if divided by the image's size: pixels are meant (`posekd convert` helps)"
    )


def _nothing_left(settings: CocoSettings, labels: Mapping[str, Any], absent: int) -> str:
    if settings.detections is not None:
        return (
            f"{settings.detections}: no detection of the category scores {settings.detection_threshold} or more "
            f"on an image of {settings.annotations}"
        )
    return (
        f"{settings.annotations}: no person to learn from among {len(labels.get('annotations', ()))} annotations "
        f"(crowds, persons without a labelled keypoint and boxes without area are left out"
        f"{f'; {absent} images are missing' if absent else ''})"
    )
