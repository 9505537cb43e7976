"""Readers of MPII's label files: HRNet's JSON, the official RELEASE struct, and the files of Tompson's split.

All count pixels from 1, as MATLAB does; nothing is shifted here. Field names follow the official
description (README of the annotations, v1.0) and deep-high-resolution-net, `lib/dataset/mpii.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posekd.coco_rules import usable
from posekd.data.sources.coco_json import finite_numbers, load_json
from posekd.data.sources.matlab import elements, field, fields_of, load_mat, number, struct_array
from posekd.lengths import head_sizes
from posekd.skeleton import MPII

K = MPII.num_keypoints
Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class MpiiLabels:
    """N people in the order of their file, in the file's own pixel coordinates.

    Attributes:
        images: N file names; empty where the file names none.
        centers: float64 `[N, 2]` (x, y), rough position of each person; NaN where there is none.
        scales: float64 `[N]`, height in units of 200 pixels; NaN where there is none.
        joints: float64 `[N, 16, 2]` (x, y).
        visibility: int64 `[N, 16]`: 0 unlabelled, 1 occluded, 2 visible.
        head_sizes: float64 `[N]`, 0.6 times the head box's diagonal; NaN for people without one.
        release: int64 `[N, 2]`, 1-based image and person in the RELEASE struct; 0 where the file does not say.
    """

    images: list[str]
    centers: np.ndarray
    scales: np.ndarray
    joints: np.ndarray
    visibility: np.ndarray
    head_sizes: np.ndarray
    release: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, chosen: np.ndarray) -> MpiiLabels:
        """The people of some rows (indices or a mask)."""
        index = np.arange(len(self))[chosen]
        arrays = {n: getattr(self, n)[index] for n in self.__dataclass_fields__ if n != "images"}
        return MpiiLabels(images=[self.images[i] for i in index], **arrays)


def read_labels(file: Path, split: Split | None, validation_list: Path | None, everybody: bool = False) -> MpiiLabels:
    """Reads a label file of any of the formats.

    Args:
        file: `.json` in HRNet's format, or `.mat`.
        split: which people of a RELEASE struct to read; None for files that hold a single split.
        validation_list: a `.mat` with `RELEASE_img_index` and `RELEASE_person_index`. It lists the people of the split
            `valid`, who are then not in `train`.
        everybody: of a RELEASE struct also people without a labelled keypoint, and all people of the test images
            instead of those who stand alone.

    Raises:
        FileNotFoundError, ImportError, ValueError: with a sentence that names file, person and field.
    """
    if file.suffix != ".mat":
        labels = _from_json(file)
    else:
        content = load_mat(file, "annotations")
        if "RELEASE" in content:
            return _from_release(content["RELEASE"], file, split, validation_list, everybody)
        if "annolist" in content:
            labels = _from_native(content, file)
        elif "pos_gt_src" in content:
            labels = _from_arrays(content, file)
        else:
            raise ValueError(
                f"{file} is no MPII label file: it needs the variable RELEASE, annolist or pos_gt_src, and has "
                f"{sorted(content)}"
            )
    if split is not None or validation_list is not None:
        raise ValueError(
            f"{file} is one split already; `split` and `validation_list` are for the official file with RELEASE"
        )
    return labels


def add_head_sizes(labels: MpiiLabels, file: Path, shift: float) -> MpiiLabels:
    """Adds the head sizes of a second file that lists the same people (HRNet's `gt_valid.mat`).

    If that file has keypoints as well, they replace those of `labels`, because the published numbers are scored
    against them. (In the file of the 2958 validation people one coordinate of 13 keypoints is lost: it is 0.)

    Args:
        labels: read from a file without head boxes.
        file: has `headboxes_src` `[2, 2, N]` and, to compare, `pos_gt_src` and `jnt_missing`, counting from 1.
        shift: what makes the coordinates of `labels` count from 1.

    Raises:
        ValueError: other people, or the keypoints of the two files differ by one pixel (one file counts from 0).
    """
    content = load_mat(file, "head_boxes")
    boxes = _array(content, "headboxes_src", (2, 2, len(labels)), file, "its people must be those of `annotations`")
    if "pos_gt_src" in content and "jnt_missing" in content:
        truth = _from_arrays(content, file)
        both = (labels.visibility > 0) & (truth.visibility > 0)
        offsets = (labels.joints - truth.joints)[both]
        if len(offsets):
            _compare(np.median(offsets, axis=0), float(np.median(np.abs(offsets + shift))), shift, file)
        labels = replace(labels, joints=truth.joints - shift, visibility=truth.visibility)
    return replace(labels, head_sizes=head_sizes(boxes.transpose(2, 0, 1).reshape(-1, 4)))


def _compare(offset: np.ndarray, error: float, shift: float, file: Path) -> None:
    if np.abs(offset + shift).max() < 0.1 and error < 0.5:
        return
    if np.abs(offset + (1 - shift)).max() < 0.1:  # as if the other base had been set
        found, wrong = ("0", "1") if shift == 0 else ("1", "0")
        raise ValueError(
            f"the keypoints count pixels from {found}, by comparison with {file}, but `first_pixel` says {wrong}: "
            f"set first_pixel: {found}"
        )
    raise ValueError(
        f"{file} does not list the people of `annotations` in their order: the keypoints differ by {error:.1f} pixels "
        "(median)"
    )


def _from_json(file: Path) -> MpiiLabels:
    entries = load_json(file, "annotations")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} is no MPII label file in HRNet's format: a list of people with image, center, scale")
    people = []
    for row, entry in enumerate(entries):
        who = f"{file}: person {row}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{who} must be a group with image, center and scale, got {entry!r:.80}")
        missing = [key for key in ("image", "center", "scale") if key not in entry]
        if missing:
            raise ValueError(f"{who} has no {', '.join(missing)}; it has {sorted(entry)}")
        center = finite_numbers(entry["center"], 2, f"{who}: center")
        (scale,) = finite_numbers([entry["scale"]], 1, f"{who}: scale")
        person = _Person(str(entry["image"]), (center[0], center[1]), scale)
        if "joints" in entry:
            person.read_joints(entry["joints"], entry.get("joints_vis", [1] * K), who)
        people.append(person)
    return _labels(people)


class _Person:
    """One person, while a file is read."""

    def __init__(
        self, image: str, center: tuple[float, float], scale: float, release: tuple[int, int] = (0, 0)
    ) -> None:
        # HRNet's files write (-1, -1), or a scale of 0 or less, where there is none
        placed = scale > 0 and tuple(center) != (-1.0, -1.0)
        self.image, self.release = image, release
        self.center = center if placed else (np.nan, np.nan)
        self.scale = scale if placed else np.nan
        self.joints = np.zeros((K, 2))
        self.visibility = np.zeros(K, np.int64)
        self.head = (np.nan,) * 4

    def read_joints(self, joints: Any, visible: Any, who: str) -> None:
        """HRNet's lists: 16 (x, y), and 0 or 1 each."""
        for name, values, shape in (("joints", joints, (K, 2)), ("joints_vis", visible, (K,))):
            try:
                array = np.asarray(values, np.float64)
            except (TypeError, ValueError, OverflowError):
                raise ValueError(f"{who}: {name} must be numbers, got {values!r:.80}") from None
            if array.shape != shape:
                raise ValueError(f"{who}: {name} must have shape {shape}, got {array.shape}")
        self.visibility = np.where(np.asarray(visible, np.float64) > 0, 2, 0)
        self.joints = np.where(self.visibility[:, None] > 0, np.asarray(joints, np.float64), 0.0)
        if not usable(self.joints).all():
            raise ValueError(f"{who}: a labelled keypoint is NaN or infinite")


def _from_release(
    release: Any, file: Path, split: Split | None, validation_list: Path | None, everybody: bool
) -> MpiiLabels:
    if split is None:
        raise ValueError(f"{file} holds all splits: choose one with `split: train`, `valid` or `test`")
    if split == "valid" and validation_list is None:
        raise ValueError(
            "MPII has no official validation split: give `validation_list`, a .mat with RELEASE_img_index and "
            "RELEASE_person_index (Tompson's detections.mat, the 2958 people of HRNet's valid.json)"
        )
    held_out = _validation(validation_list)
    annolist = elements(field(release, "annolist", f"{file}: RELEASE"))
    is_train = np.atleast_1d(field(release, "img_train", f"{file}: RELEASE"))
    alone: Sequence[Any] = annolist
    if split == "test" and not everybody:
        alone = field(release, "single_person", f"{file}: RELEASE")
        alone = [alone] if len(annolist) == 1 else elements(alone)  # a cell array of one element has lost its shape
    for name, values in (("img_train", is_train), ("single_person", alone)):
        if len(values) != len(annolist):
            raise ValueError(f"{file}: RELEASE has {len(annolist)} images in annolist but {len(values)} in {name}")
    people: list[_Person] = []
    unlisted = set() if split == "test" else set(held_out)
    for index, image in enumerate(annolist):
        if bool(is_train[index]) == (split == "test"):
            continue
        who = f"{file}: annolist({index + 1})"
        chosen = set(np.atleast_1d(alone[index]).tolist()) if alone is not annolist else None
        for number_, rect in enumerate(elements(getattr(image, "annorect", None)), start=1):
            where = (index + 1, number_)
            unlisted.discard(where)
            if chosen is not None and number_ not in chosen:
                continue
            if chosen is None and (where in held_out) != (split == "valid"):
                continue
            person = _from_rect(rect, _image_name(image, who), f"{who}.annorect({number_})", where)
            if split == "test" or everybody or person.visibility.any():
                people.append(person)
    if unlisted:
        first = min(unlisted)
        raise ValueError(
            f"{validation_list} does not belong to {file}: {len(unlisted)} of its {len(held_out)} people are not "
            f"among the training images, the first is annolist({first[0]}).annorect({first[1]})"
        )
    if not people:
        raise ValueError(f"{file}: the split {split!r} has no people")
    return _labels(people)


def submission(file: Path, found: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The struct array `pred` of the MPII evaluation server: all test images, in order.

    `pred(i).annorect(r).annopoints.point(j)` has the fields x, y, id; people without a pose have no points.

    Args:
        file: the official `.mat` with the RELEASE struct.
        found: (image, person), 1-based in RELEASE -> `[16, 2]`, counting pixels from 1.
    """
    release = load_mat(file, "annotations")["RELEASE"]
    annolist = elements(release.annolist)
    is_train = np.atleast_1d(release.img_train)
    images = []
    for index, image in enumerate(annolist, start=1):
        if is_train[index - 1]:
            continue
        rects = []
        for person in range(1, len(elements(getattr(image, "annorect", None))) + 1):
            joints = found.get((index, person))
            points = [] if joints is None else [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(joints.tolist())]
            rects.append({"annopoints": {"point": struct_array(points)} if points else np.zeros((0, 0))})
        name = {"name": _image_name(image, f"{file}: annolist({index})")}
        images.append({"image": name, "annorect": struct_array(rects) if rects else np.zeros((0, 0))})
    return struct_array(images)


def _validation(file: Path | None) -> set[tuple[int, int]]:
    if file is None:
        return set()
    content = load_mat(file, "validation_list")
    return set(map(tuple, _release_index(content, file).tolist()))


def _release_index(content: Mapping[str, Any], file: Path) -> np.ndarray:
    columns = []
    for name in ("RELEASE_img_index", "RELEASE_person_index"):
        if name not in content:
            raise ValueError(f"{file} has no variable {name!r}; it has {sorted(content)}")
        try:
            columns.append(np.atleast_1d(content[name]).astype(np.int64))
        except (TypeError, ValueError):
            raise ValueError(f"{file}: {name} must be whole numbers") from None
    if columns[0].shape != columns[1].shape:
        raise ValueError(f"{file}: {len(columns[0])} image indices but {len(columns[1])} person indices")
    return np.stack(columns, axis=1)


def _image_name(image: Any, who: str) -> str:
    return str(field(field(image, "image", who), "name", f"{who}.image"))


def _from_native(content: Mapping[str, Any], file: Path) -> MpiiLabels:
    """Structs of one person each, without file names, as distributed with Tompson's predictions."""
    annolist = elements(content["annolist"])
    index = _release_index(content, file)
    if len(index) != len(annolist):
        raise ValueError(f"{file}: {len(annolist)} people in annolist but {len(index)} RELEASE indices")
    people = []
    for row, (entry, where) in enumerate(zip(annolist, index.tolist(), strict=True)):
        who = f"{file}: annolist({row + 1})"
        rects = elements(field(entry, "annorect", who))
        if len(rects) != 1:
            raise ValueError(f"{who} must hold one person, it holds {len(rects)}")
        people.append(_from_rect(rects[0], "", f"{who}.annorect", (where[0], where[1])))
    return _labels(people)


def _from_rect(rect: Any, image: str, who: str, where: tuple[int, int]) -> _Person:
    """A body annotation. Position, scale, head box and keypoints may be absent, but not incomplete."""
    position = getattr(rect, "objpos", None)
    center = (np.nan, np.nan)
    if fields_of(position):
        center = (number(field(position, "x", f"{who}.objpos")), number(field(position, "y", f"{who}.objpos")))
    person = _Person(image, center, number(getattr(rect, "scale", None)), where)
    if not usable(center).all():
        person.center, person.scale = (np.nan, np.nan), np.nan
    corners = [number(getattr(rect, name, None)) for name in ("x1", "y1", "x2", "y2")]
    if usable(corners).any() and not usable(corners).all():
        absent = [n for n, v in zip(("x1", "y1", "x2", "y2"), corners, strict=True) if not usable(v)]
        raise ValueError(f"{who} has a head box without {', '.join(absent)}")
    person.head = (corners[0], corners[1], corners[2], corners[3])
    for point in elements(getattr(getattr(rect, "annopoints", None), "point", None)):
        x, y, joint = (number(field(point, name, f"{who}.annopoints.point")) for name in ("x", "y", "id"))
        if joint not in range(K):
            raise ValueError(f"{who}: keypoint id {joint:g} is outside 0..{K - 1}")
        if not usable((x, y)).all():
            raise ValueError(f"{who}: keypoint {MPII.keypoints[int(joint)]} has no finite coordinates")
        person.joints[int(joint)] = x, y
        # neck and head top carry no flag: they come from the head box
        person.visibility[int(joint)] = 1 if number(getattr(point, "is_visible", None)) == 0 else 2
    return person


def _from_arrays(content: Mapping[str, Any], file: Path) -> MpiiLabels:
    """HRNet's `gt_valid.mat`: keypoints and head boxes, but neither images nor positions."""
    joints = np.asarray(content["pos_gt_src"], np.float64)
    if joints.ndim == 2:  # of one person
        joints = joints[..., None]
    N = joints.shape[-1]
    joints = _array({"pos_gt_src": joints}, "pos_gt_src", (K, 2, N), file).transpose(2, 0, 1)
    missing = _array(content, "jnt_missing", (K, N), file).T > 0
    bad = (~usable(joints).all(-1) & ~missing).any(1)
    if bad.any():
        raise ValueError(f"{file}: person {int(np.flatnonzero(bad)[0])}: a labelled keypoint is NaN or infinite")
    boxes = _array(content, "headboxes_src", (2, 2, N), file).transpose(2, 0, 1).reshape(-1, 4)
    return MpiiLabels(
        images=[""] * N,
        centers=np.full((N, 2), np.nan),
        scales=np.full(N, np.nan),
        joints=np.where(missing[..., None], 0.0, joints),
        visibility=np.where(missing, 0, 2),
        head_sizes=head_sizes(boxes),
        release=np.zeros((N, 2), np.int64),
    )


def _array(
    content: Mapping[str, Any], name: str, shape: tuple[int, ...], file: Path, why: str = "16 keypoints"
) -> np.ndarray:
    if name not in content:
        raise ValueError(f"{file} has no variable {name!r}; it has {sorted(content)}")
    array = np.asarray(content[name], np.float64)
    if shape[-1] == 1 and array.shape == shape[:-1]:
        array = array[..., None]
    if array.shape != shape:
        raise ValueError(f"{file}: {name} must have shape {shape} ({why}), it has {array.shape}")
    return array


def _labels(people: Sequence[_Person]) -> MpiiLabels:
    return MpiiLabels(
        images=[p.image for p in people],
        centers=np.array([p.center for p in people], np.float64),
        scales=np.array([p.scale for p in people], np.float64),
        joints=np.stack([p.joints for p in people]),
        visibility=np.stack([p.visibility for p in people]),
        head_sizes=head_sizes([p.head for p in people]),
        release=np.array([p.release for p in people], np.int64),
    )
