"""MPII's multi-person benchmark: groups of people, each in a window of its image, scored by the AP of keypoints.

The official rules let a network know where a group is and how large its people are on average, but not how many there
are or where each of them stands. A group's image is therefore the window around its members' rough positions; how much
larger it is than these is a choice (`MpiiGroupsSettings.margin`), for nothing is published about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posekd import coco_rules
from posekd.data.images import missing_files, read_rgb
from posekd.data.outlines import hull_box, outline_of
from posekd.data.records import PoseRecords
from posekd.data.regions import ignored_regions
from posekd.data.sources.matlab import elements, load_mat
from posekd.data.sources.mpii import PIXELS, MpiiSettings, read_mpii
from posekd.data.sources.mpii_files import MpiiLabels, Split
from posekd.data.sources.people import image_sizes
from posekd.skeleton import MPII


@dataclass(frozen=True)
class MpiiGroupsSettings:
    """Where MPII's files are, and which groups to read.

    Attributes:
        images: folder of the images.
        annotations: the official `.mat` with the RELEASE struct, or HRNet's JSON of one split.
        split: split of the official `.mat`, as in `MpiiSettings`; `test` takes all people of the test images.
        groups: the groups of each image's people: `.json`, from an image's name to lists of people, counting from 1 in
            the order of the label file; or `.mat` with the variable `groups`, a cell array with an entry for each image
            of RELEASE, which is a cell array of lists. All people of an image are one group without it.
        margin: how much a group's window is larger than the box around its members' positions, on each side, in their
            average height; null for whole images (for training).
        head_boxes: `.mat` with the head boxes of the people of HRNet's JSON.
        validation_list: `.mat` with the people of the split `valid`.
        first_pixel: the coordinate of the first pixel in the files.
        on_missing_image: "refuse", or "skip" images whose file is not there, with a counted warning.
        apply_orientation: turn images as their EXIF tags say.
    """

    images: str
    annotations: str
    split: Split | None = None
    groups: str | None = None
    margin: float | None = 0.75
    head_boxes: str | None = None
    validation_list: str | None = None
    first_pixel: Literal[0, 1] = 1
    on_missing_image: Literal["refuse", "skip"] = "refuse"
    apply_orientation: bool = False

    def __post_init__(self) -> None:
        self.single()
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise ValueError(f"margin is a share of people's height, 0 or more, or null; got {self.margin}")

    def single(self) -> MpiiSettings:
        """The same files as those of single people."""
        return MpiiSettings(**{f.name: getattr(self, f.name) for f in fields(MpiiSettings)})


@dataclass(frozen=True)
class Group:
    """People who stand together. Coordinates are pixels of the whole image, from 0.

    Attributes:
        image: name of the image file.
        number: of the group in its image, from 1.
        rows: int64 `[n]`, its members' rows in the labels.
        points: float64 `[n, 16, 2]`.
        visibility: int64 `[n, 16]`: 0 unlabelled, 1 occluded, 2 visible.
        heads: float64 `[n]`, head sizes in pixels; NaN for people without a head box.
        near: float64 `[4]` (x1, y1, x2, y2), the window before it is cut at the image's border; None for all of it.
        unlabelled: float64 `[m, 4]` (x, y, width, height), squares around members without a labelled keypoint.
    """

    image: str
    number: int
    rows: np.ndarray
    points: np.ndarray
    visibility: np.ndarray
    heads: np.ndarray
    near: np.ndarray | None
    unlabelled: np.ndarray


def read_groups(settings: MpiiGroupsSettings) -> list[Group]:
    """Reads labels and groups; looks for no image.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file is missing or malformed; the message names file and value.
    """
    labels = read_mpii(settings.single(), everybody=True)
    if not all(labels.images):
        raise ValueError(f"{settings.annotations} names no images, so its people are in no groups")
    numbers = _numbers(labels)
    by_image: dict[str, dict[int, int]] = {}
    for row, name in enumerate(labels.images):
        by_image.setdefault(name, {})[numbers[row]] = row
    listed = None if settings.groups is None else _listed(Path(settings.groups), labels)
    if listed is not None and not set(listed) & set(by_image):
        raise ValueError(f"{settings.groups} lists no group of the images of {settings.annotations}")
    groups = []
    for name, own in by_image.items():
        for number, members in enumerate([list(own)] if listed is None else listed.get(name, []), start=1):
            # people of another split are no members here
            rows = np.array(sorted(own[m] for m in members if m in own), np.int64)
            if len(rows):
                groups.append(_group(name, number, rows, labels, settings))
    if not groups:
        raise ValueError(f"{settings.groups}: nobody of {settings.annotations} is in a group")
    return groups


def _numbers(labels: MpiiLabels) -> list[int]:
    """The number of each person in its image, from 1: RELEASE's, or the order of the file."""
    counts: dict[str, int] = {}
    numbers = []
    for row, name in enumerate(labels.images):
        counts[name] = counts.get(name, 0) + 1
        numbers.append(int(labels.release[row, 1]) or counts[name])
    return numbers


def _listed(file: Path, labels: MpiiLabels) -> dict[str, list[list[int]]]:
    """Image name -> its groups, lists of people's numbers."""
    if file.suffix != ".mat":
        content = coco_rules.read_json(file, "groups")
        if not isinstance(content, Mapping):
            raise ValueError(f"{file} must map images' names to lists of groups, it is a {type(content).__name__}")
        return {str(name): _checked(groups, f"{file}: {name}") for name, groups in content.items()}
    variables = load_mat(file, "groups")
    if "groups" not in variables:
        raise ValueError(f"{file} has no variable 'groups'; it has {sorted(variables)}")
    cells = elements(variables["groups"])
    found: dict[str, list[list[int]]] = {}
    for (image, _), name in zip(labels.release.tolist(), labels.images, strict=True):
        if not 0 < image <= len(cells):
            raise ValueError(f"{file}: `groups` has {len(cells)} entries, and {name} is image {image} of the labels")
        cell = cells[image - 1]
        # a cell array of one group has lost its shape: it is the list of the group's people
        lists = elements(cell) if getattr(cell, "dtype", np.dtype(int)).kind == "O" else [cell]
        plain = [[member.item() for member in np.atleast_1d(group)] for group in lists]
        found[name] = _checked([group for group in plain if group], f"{file}: groups{{{image}}}")
    return found


def _checked(groups: Any, who: str) -> list[list[int]]:
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError(f"{who} must be a list of groups, lists of people's numbers, got {groups!r:.80}")
    numbers = [[coco_rules.whole(member, f"{who}: a person's number") for member in group] for group in groups]
    everybody = [member for group in numbers for member in group]
    if len(set(everybody)) < len(everybody) or min(everybody, default=1) < 1:
        raise ValueError(f"{who}: people count from 1, and nobody is in two groups; got {groups!r:.80}")
    return numbers


def _group(name: str, number: int, rows: np.ndarray, labels: MpiiLabels, settings: MpiiGroupsSettings) -> Group:
    first, labelled = settings.first_pixel, labels.visibility[rows].any(1)
    placed = np.isfinite(labels.scales[rows])
    centers, scales = labels.centers[rows][placed] - first, labels.scales[rows][placed]
    near = None
    if settings.margin is not None and len(scales):
        reach = settings.margin * PIXELS * scales.mean()  # one scale for all: theirs on average
        near = np.concatenate((centers.min(0) - reach, centers.max(0) + reach))
    alone = placed & ~labelled
    side = PIXELS * labels.scales[rows][alone][:, None]
    squares = np.concatenate((labels.centers[rows][alone] - first - side / 2, side, side), 1)
    shown = rows[labelled]
    seen = labels.visibility[shown]
    points = np.where(seen[..., None] > 0, labels.joints[shown] - first, 0.0)
    return Group(name, number, shown, points, seen, labels.head_sizes[shown], near, squares)


# ---- As a dataset ----------------------------------------------------------------------------------------------


class MpiiGroups:
    """Groups of people as a dataset. A `PoseSource` with an image, the window of its photograph, for each group.

    Attributes:
        records: the labelled people, in pixels of the windows.
        groups: in the order of the records' images.
        windows: int64 `[M, 4]` (x1, y1, x2, y2), where the windows are in their photographs.
    """

    def __init__(self, settings: MpiiGroupsSettings) -> None:
        """Reads the label files; decodes nothing.

        Raises:
            FileNotFoundError: a label file, the image folder or an image is missing.
            ImportError: a `.mat` file without scipy.
            ValueError: a malformed file; the message names file, person and value.
        """
        groups = read_groups(settings)
        folder = Path(settings.images)
        if not folder.is_dir():
            raise FileNotFoundError(f"image folder {folder} does not exist (setting `images`)")
        paths = [str(folder / group.image) for group in groups]
        absent = missing_files(list(dict.fromkeys(paths)), settings.annotations, settings.on_missing_image)
        self.groups = [group for group, path in zip(groups, paths, strict=True) if path not in absent]
        if not self.groups:
            raise ValueError(f"{settings.annotations}: the images of all {len(groups)} groups are missing")
        self._files = [path for path in paths if path not in absent]
        self._orientation = settings.apply_orientation
        files = list(dict.fromkeys(self._files))
        sizes = dict(zip(files, image_sizes(files, settings.apply_orientation).tolist(), strict=True))
        self.windows = np.array(
            [_window(group.near, *sizes[file]) for group, file in zip(self.groups, self._files, strict=True)], np.int64
        )
        self.records = _records(self.groups, self.windows, settings.annotations)

    def load_image(self, row: int, reduction: int = 1) -> np.ndarray:
        """Decodes the photograph of group `row` and cuts its window, whatever the reduction: uint8 RGB `[H, W, 3]`."""
        photograph = read_rgb(self._files[row], apply_orientation=self._orientation)
        x1, y1, x2, y2 = self.windows[row].tolist()
        return photograph if not x2 else np.ascontiguousarray(photograph[y1:y2, x1:x2])

    def image_name(self, row: int) -> str:
        """Path of the photograph of group `row`."""
        return self._files[row]


def _window(near: np.ndarray | None, height: int, width: int) -> tuple[int, int, int, int]:
    """A window within its image; zeros where the image's header could not be read (the loader says so)."""
    if near is None or not height:
        return 0, 0, width, height
    x1, y1 = np.floor(near[:2]).clip(0, (width - 1, height - 1)).astype(int).tolist()
    x2, y2 = np.ceil(near[2:]).astype(int).tolist()
    return x1, y1, max(x1 + 1, min(x2, width)), max(y1 + 1, min(y2, height))


def _records(groups: Sequence[Group], windows: np.ndarray, name: str) -> PoseRecords:
    counts = [len(group.rows) for group in groups]
    image_rows = np.repeat(np.arange(len(groups)), counts)
    corners = windows[image_rows, None, :2].astype(np.float64)
    points = np.concatenate([group.points for group in groups])
    seen = np.concatenate([group.visibility for group in groups])
    moved = np.where(seen[..., None] > 0, points - corners, 0.0)
    boxes = [hull_box(own[there > 0]) for own, there in zip(moved, seen, strict=True)]
    sizes = windows[:, [3, 2]] - windows[:, [1, 0]]
    entries = {row: {"height": h, "width": w} for row, (h, w) in enumerate(sizes.tolist()) if h}
    nobody = [
        {"id": 0, "image_id": row, "iscrowd": 1, "segmentation": [_corners(*square, *windows[row, :2].tolist())]}
        for row in entries
        for square in groups[row].unlabelled.tolist()
    ]
    return PoseRecords(
        skeleton=MPII,
        image_ids=np.arange(len(groups)),
        image_sizes=sizes,
        image_rows=image_rows,
        keypoints=np.concatenate((moved, seen[..., None]), -1).astype(np.float32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        box_scores=np.ones(len(boxes), np.float32),
        sample_ids=np.concatenate([group.rows for group in groups]),
        outlines=np.array([outline_of(None, box) for box in boxes], np.float32) if boxes else None,
        ignored=ignored_regions(nobody, entries, name),
        metrics=("mpii_groups",),
        reference_lengths=np.concatenate([group.heads for group in groups]),
    )


def _corners(x: float, y: float, width: float, height: float, left: float, top: float) -> list[float]:
    x, y = x - left, y - top
    return [x, y, x + width, y, x + width, y + height, x, y + height]
