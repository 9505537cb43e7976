"""Leeds Sports Pose and its extended training set, scored by PCK of the torso.

The two `joints.mat` differ in their axes and in what the third value means:

- LSP, `[3, 14, 2000]`: every keypoint has coordinates, and 1 marks an **occluded** one.
- LSP Extended, `[14, 3, 10000]`: 1 marks a **visible** keypoint, and the others have no usable coordinates.

Both are person-centric (the right ankle is that person's right ankle), with coordinates in fractions of a pixel, which
are taken as they are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posekd.coco_rules import usable
from posekd.data.images import missing_files
from posekd.data.records import PoseRecords
from posekd.data.sources.matlab import load_mat
from posekd.data.sources.people import PeopleInFiles, image_sizes
from posekd.lengths import torso_lengths
from posekd.skeleton import LSP

K = LSP.num_keypoints
TRAIN = 1000  # images 1 to 1000 are the training set, 1001 to 2000 the test set
EXTENDED_IDS = 10_000  # image n of the extended set has the id 10000 + n


@dataclass(frozen=True)
class LspSettings:
    """Where LSP's files are, and which people to read.

    Attributes:
        images: folder of the images, `im0001.jpg` (extended: `im00001.jpg`).
        annotations: `joints.mat` of LSP or of LSP Extended; its shape says which.
        split: LSP's first 1000 images are `train`, the other 1000 `test`; LSP Extended is all `train`.
        extended_images: folder of LSP Extended's images, to be mixed into `train`.
        extended_annotations: its `joints.mat`.
        box: what is cropped: the whole `image`, which needs no label and is usual for LSP, or the rectangle around the
            labelled `joints`. If None, `image` for LSP and `joints` for LSP Extended, whose images are larger.
        image_ids: take only these images: LSP's numbers 1 to 2000, and 10000 + n for LSP Extended's.
        on_missing_image: "refuse", or "skip" images whose file is not there, with a counted warning.
        apply_orientation: turn images as their EXIF tags say, for labels that were drawn on what a viewer shows; the
            published labels were drawn on the stored pixels.
    """

    images: str
    annotations: str
    split: Literal["train", "test"]
    extended_images: str | None = None
    extended_annotations: str | None = None
    box: Literal["image", "joints"] | None = None
    image_ids: list[int] | None = None
    on_missing_image: Literal["refuse", "skip"] = "refuse"
    apply_orientation: bool = False

    def __post_init__(self) -> None:
        if (self.extended_images is None) != (self.extended_annotations is None):
            raise ValueError("extended_images and extended_annotations belong together: give both or neither")
        if self.extended_images is not None and self.split == "test":
            raise ValueError("LSP Extended is for training only: it cannot be mixed into split `test`")
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {self.split!r}")


@dataclass(frozen=True)
class LspLabels:
    """N people, each in an image of their own.

    Attributes:
        keypoints: float64 `[N, 14, 3]` (x, y, visibility 0 unlabelled, 1 occluded, 2 visible).
        ids: int64 `[N]`, see `LspSettings.image_ids`.
        files: path of each image.
        extended: bool `[N]`, whether a person belongs to LSP Extended.
    """

    keypoints: np.ndarray
    ids: np.ndarray
    files: list[str]
    extended: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def read_lsp(settings: LspSettings) -> LspLabels:
    """Reads the people of the label files; looks for no image.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file is missing or malformed.
    """
    parts = [_read_part(Path(settings.annotations), settings.images, settings.split)]
    if settings.extended_annotations is not None and settings.extended_images is not None:
        if parts[0].extended.all():
            raise ValueError(
                f"{settings.annotations} is LSP Extended's joints.mat: where `extended_annotations` is given, "
                "`annotations` must be LSP's own joints.mat"
            )
        parts.append(_read_part(Path(settings.extended_annotations), settings.extended_images, "train"))
        if not parts[1].extended.all():
            raise ValueError(f"{settings.extended_annotations} is not LSP Extended's joints.mat, but LSP's")
    labels = LspLabels(
        keypoints=np.concatenate([part.keypoints for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        files=[file for part in parts for file in part.files],
        extended=np.concatenate([part.extended for part in parts]),
    )
    if settings.image_ids is None:
        return labels
    unknown = sorted(set(settings.image_ids) - set(labels.ids.tolist()))
    if unknown:
        raise ValueError(f"image_ids: {unknown[:5]} are not in the split {settings.split!r} of {settings.annotations}")
    return _rows(labels, np.isin(labels.ids, settings.image_ids))


def open_lsp(settings: LspSettings) -> PeopleInFiles:
    """Opens LSP; decodes nothing.

    Raises:
        FileNotFoundError: a label file, an image folder or an image is missing.
        ImportError: scipy is not installed.
        ValueError: a malformed file; the message names it.
    """
    labels = read_lsp(settings)
    everyone = labels.ids
    for name in ("images", "extended_images"):
        folder = getattr(settings, name)
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"image folder {folder} does not exist (setting `{name}`)")
    missing = missing_files(labels.files, settings.annotations, settings.on_missing_image)
    labels = _rows(labels, np.array([file not in missing for file in labels.files]))
    if not len(labels):
        raise ValueError(f"{settings.annotations}: none of the images of split {settings.split!r} is there")
    sizes = image_sizes(labels.files, settings.apply_orientation)
    by_image = ~labels.extended if settings.box is None else np.full(len(labels), settings.box == "image")
    records, to_mat = lsp_records(labels, sizes, by_image), partial(lsp_predictions, everyone)
    return PeopleInFiles(records, labels.files, to_mat, settings.apply_orientation)


def lsp_labels(settings: LspSettings) -> PoseRecords:
    """The labels without the images, to score predictions against.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file is missing or malformed.
    """
    return lsp_records(read_lsp(settings))


def lsp_records(labels: LspLabels, sizes: np.ndarray | None = None, by_image: np.ndarray | None = None) -> PoseRecords:
    """Labels as records.

    Args:
        labels: N people.
        sizes: int64 `[N, 2]`, height and width of the images; 0 if None.
        by_image: bool `[N]`, whether the crop is the whole image; else the labelled keypoints. If None, all keypoints.
    """
    N = len(labels)
    sizes = np.zeros((N, 2), np.int64) if sizes is None else sizes
    boxes = _joint_boxes(labels.keypoints)
    if by_image is None:
        by_image = np.zeros(N, bool)
    whole = np.concatenate((np.zeros((N, 2)), sizes[:, ::-1]), axis=1)
    boxes = np.where(by_image[:, None], whole, boxes)
    return PoseRecords(
        skeleton=LSP,
        image_ids=labels.ids,
        image_sizes=sizes,
        image_rows=np.arange(N),
        keypoints=labels.keypoints.astype(np.float32),
        boxes=boxes.astype(np.float32),
        box_scores=np.ones(N, np.float32),
        sample_ids=labels.ids,
        exact_boxes=by_image,
        metrics=("pck",),
        reference_lengths=torso_lengths(labels.keypoints, LSP),
    )


def lsp_predictions(ids: np.ndarray, sample_ids: np.ndarray, keypoints: np.ndarray) -> dict[str, Any]:
    """Variables of a prediction file: `preds` `[N, 14, 2]`, all people in the order of `ids`, NaN without a pose."""
    everyone = np.full((len(ids), K, 2), np.nan)
    everyone[np.searchsorted(ids, sample_ids)] = keypoints
    return {"preds": everyone, "image_ids": ids}


def _joint_boxes(keypoints: np.ndarray) -> np.ndarray:
    """Rectangles around the labelled keypoints `[N, 4]` (x, y, width, height), at least 1 pixel wide."""
    labelled = keypoints[..., 2:] > 0
    low = np.where(labelled, keypoints[..., :2], np.inf).min(axis=1)
    high = np.where(labelled, keypoints[..., :2], -np.inf).max(axis=1)
    return np.concatenate((low, np.maximum(high - low, 1.0)), axis=1)


def _read_part(file: Path, folder: str, split: str) -> LspLabels:
    content = load_mat(file, "annotations")
    if "joints" not in content:
        raise ValueError(f"{file} has no variable 'joints'; it has {sorted(content)}")
    joints = np.asarray(content["joints"], np.float64)
    if joints.ndim == 2:  # of one person
        joints = joints[..., None]
    extended = joints.shape[:2] == (K, 3)
    if joints.ndim != 3 or not (extended or joints.shape[:2] == (3, K)):
        raise ValueError(
            f"{file}: joints must be (3, 14, N) as in LSP, or (14, 3, N) as in LSP Extended; it is {joints.shape}"
        )
    points = joints.transpose(2, 0, 1) if extended else joints.transpose(2, 1, 0)
    flag = points[..., 2]
    if not np.isin(flag, (0, 1)).all():
        raise ValueError(
            f"{file}: the third value of a keypoint is a flag, 0 or 1; found {flag[~np.isin(flag, (0, 1))][0]:g}"
        )
    # in LSP 1 is occluded, in LSP Extended 1 is visible and the rest has no usable coordinates
    visibility = np.where(flag > 0, 2, 0) if extended else np.where(flag > 0, 1, 2)
    if (visibility == 2).mean() < 0.5:
        warnings.warn(
            f"{file}: fewer than half of the keypoints are visible. In LSP the flag 1 marks an occluded keypoint, in "
            "LSP Extended a visible one: was this file converted?",
            stacklevel=4,
        )
    labelled = visibility > 0
    bad = (labelled & ~usable(points[..., :2]).all(-1)).any(1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{file}: image {row + 1} has a labelled keypoint that is NaN or infinite")
    keypoints = np.concatenate((np.where(labelled[..., None], points[..., :2], 0.0), visibility[..., None]), axis=-1)
    numbers = np.arange(1, len(points) + 1)
    labels = LspLabels(
        keypoints=keypoints,
        ids=numbers + (EXTENDED_IDS if extended else 0),
        files=[str(Path(folder) / (f"im{n:05d}.jpg" if extended else f"im{n:04d}.jpg")) for n in numbers],
        extended=np.full(len(points), extended),
    )
    return _split(labels, split, file)


def _split(labels: LspLabels, split: str, file: Path) -> LspLabels:
    if labels.extended.all():
        if split == "test":
            raise ValueError(f"{file} is LSP Extended's joints.mat, which has no test split")
        return _rows(labels, labels.keypoints[..., 2].max(axis=1) > 0)
    if len(labels) != 2 * TRAIN:
        raise ValueError(
            f"{file} has {len(labels)} people; LSP has 2000, the first 1000 to train on and the rest to test"
        )
    is_train: np.ndarray = labels.ids <= TRAIN
    return _rows(labels, is_train if split == "train" else ~is_train)


def _rows(labels: LspLabels, chosen: np.ndarray) -> LspLabels:
    index = np.flatnonzero(chosen)
    return LspLabels(
        labels.keypoints[index], labels.ids[index], [labels.files[i] for i in index], labels.extended[index]
    )
