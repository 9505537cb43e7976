"""MPII: single people at a rough position, scored by PCKh.

Crops follow deep-high-resolution-net, `lib/dataset/mpii.py`: the centre moves down by 15 pixels times the scale (to be
more likely to show the feet), the box is a square of 200 pixels times the scale, the loader's padding of 1.25 enlarges
it, and coordinates that count from 1 are shifted to count from 0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from posekd.data.images import missing_files
from posekd.data.records import PoseRecords
from posekd.data.sources.mpii_files import MpiiLabels, Split, add_head_sizes, read_labels, submission
from posekd.data.sources.people import PeopleInFiles, image_sizes
from posekd.skeleton import MPII

PIXELS = 200.0  # person height in pixels at a scale of 1
SHIFT = 15.0  # pixels that the centre moves down at a scale of 1


@dataclass(frozen=True)
class MpiiSettings:
    """Where MPII's files are, and which people to read.

    Attributes:
        images: folder of the images.
        annotations: HRNet's `train.json`, `valid.json` or `test.json`, or the official `.mat` with the RELEASE struct.
        split: split of the official `.mat`: `train`, `valid` (with `validation_list`), or `test` (the single people of
            the test images, without labels). HRNet's files are one split each.
        head_boxes: `.mat` with the head boxes of the same people in the same order (HRNet's `gt_valid.mat`); PCKh
            needs them, and HRNet's JSON has none. If it has keypoints, predictions are scored against those.
        validation_list: `.mat` with RELEASE_img_index and RELEASE_person_index of the people held out of `train`
            (Tompson's `detections.mat`).
        first_pixel: the coordinate of the first pixel in the files: 1 in all published ones, 0 in files that have
            been moved already.
        on_missing_image: "refuse", or "skip" images whose file is not there, with a counted warning.
        apply_orientation: turn images as their EXIF tags say, for labels that were drawn on what a viewer shows; the
            published labels were drawn on the stored pixels.
    """

    images: str
    annotations: str
    split: Split | None = None
    head_boxes: str | None = None
    validation_list: str | None = None
    first_pixel: Literal[0, 1] = 1
    on_missing_image: Literal["refuse", "skip"] = "refuse"
    apply_orientation: bool = False

    def __post_init__(self) -> None:
        if self.split not in (None, *get_args(Split)):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, or none; got {self.split!r}")
        if self.first_pixel not in (0, 1):
            raise ValueError(f"first_pixel is 0 or 1, got {self.first_pixel!r}")


def read_mpii(settings: MpiiSettings, everybody: bool = False) -> MpiiLabels:
    """Reads the people of the label files; looks for no image.

    Args:
        settings: the files.
        everybody: see `read_labels`.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file is missing or malformed.
    """
    validation_list = None if settings.validation_list is None else Path(settings.validation_list)
    labels = read_labels(Path(settings.annotations), settings.split, validation_list, everybody)
    if settings.head_boxes is not None:
        labels = add_head_sizes(labels, Path(settings.head_boxes), 1 - settings.first_pixel)
    return labels


def open_mpii(settings: MpiiSettings) -> PeopleInFiles:
    """Opens MPII; decodes nothing.

    People without a position or scale have no crop and are left out, with a counted warning.

    Raises:
        FileNotFoundError: a label file, the image folder or an image is missing.
        ImportError: a `.mat` file without scipy.
        ValueError: a malformed file; the message names file, person and value.
    """
    labels = read_mpii(settings)
    folder = Path(settings.images)
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist (setting `images`)")
    if not all(labels.images):
        raise ValueError(
            f"{settings.annotations} names no images: predictions can be scored against it "
            "(`posekd eval --score-only`), but it has nothing to crop; "
            "give HRNet's .json or the official .mat as `annotations`"
        )
    placed = np.isfinite(labels.scales)
    if not placed.all():
        warnings.warn(
            f"{settings.annotations}: {int((~placed).sum())} of {len(placed)} people have no position or scale and "
            "are left out.",
            stacklevel=2,
        )
    paths = np.array([str(folder / name) for name in labels.images])
    missing = missing_files(paths[placed].tolist(), settings.annotations, settings.on_missing_image)
    kept = np.flatnonzero(placed & ~np.isin(paths, list(missing)))
    if not len(kept):
        raise ValueError(f"{settings.annotations}: none of its {len(labels)} people can be used")
    files, image_rows = _number(paths[kept].tolist())
    order = np.argsort(image_rows, kind="stable")  # people of one image stand together
    rows = kept[order]
    sizes = image_sizes(files, settings.apply_orientation)
    records = mpii_records(labels.rows(rows), settings.first_pixel, image_rows[order], sizes, sample_ids=rows)
    official_test = settings.annotations if settings.split == "test" else None
    if settings.first_pixel == 0:
        _suspect_one_based(records, settings.annotations)
    to_mat = partial(mpii_predictions, official_test, labels.release)
    return PeopleInFiles(records, files, to_mat, settings.apply_orientation)


def mpii_labels(settings: MpiiSettings) -> PoseRecords:
    """The labels without the images, to score predictions against.

    Raises:
        FileNotFoundError, ImportError, ValueError: a file is missing or malformed.
    """
    return mpii_records(read_mpii(settings), settings.first_pixel)


def mpii_records(
    labels: MpiiLabels,
    first_pixel: int,
    image_rows: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    sample_ids: np.ndarray | None = None,
) -> PoseRecords:
    """Labels as records that count pixels from 0.

    Args:
        labels: N people.
        first_pixel: the coordinate of the first pixel, 0 or 1, that the labels count from.
        image_rows: int64 `[N]`, row of each person's image; one image per person if None.
        sizes: int64 `[M, 2]`, height and width of the images; 0 if None.
        sample_ids: int64 `[N]`; the rows if None.
    """
    N = len(labels)
    image_rows = np.arange(N) if image_rows is None else image_rows
    sizes = np.zeros((N, 2), np.int64) if sizes is None else sizes
    labelled = labels.visibility > 0
    points = np.where(labelled[..., None], labels.joints - first_pixel, 0.0)
    side = PIXELS * labels.scales[:, None]
    corner = labels.centers + np.array([0.0, SHIFT]) * labels.scales[:, None] - first_pixel - side / 2
    return PoseRecords(
        skeleton=MPII,
        image_ids=np.arange(len(sizes)),
        image_sizes=sizes,
        image_rows=image_rows.astype(np.int64),
        keypoints=np.concatenate((points, labels.visibility[..., None]), axis=-1).astype(np.float32),
        boxes=np.concatenate((corner, side, side), axis=-1).astype(np.float32),
        box_scores=np.ones(N, np.float32),
        sample_ids=np.arange(N) if sample_ids is None else sample_ids.astype(np.int64),
        metrics=("pckh", "pck_torso"),
        reference_lengths=labels.head_sizes,
        first_pixel=1,
    )


def mpii_predictions(
    official_test: str | None, release: np.ndarray, sample_ids: np.ndarray, keypoints: np.ndarray
) -> dict[str, Any]:
    """Variables of a prediction file, counting pixels from 1 as MPII does.

    Args:
        official_test: the official label file, if the people are its test split.
        release: int64 `[N, 2]`, image and person of each in the RELEASE struct, counting from 1; 0 for none.
        sample_ids: int64 `[P]`, rows of the file.
        keypoints: `[P, 16, 2]`, counting from 0.

    Returns:
        `preds` `[N, 16, 2]` in the file's order, as HRNet writes it; NaN for people who were not predicted. For the
        official test split also `pred`, the struct that the MPII server takes.
    """
    everyone = np.full((len(release), MPII.num_keypoints, 2), np.nan)
    everyone[sample_ids] = keypoints + 1.0
    if official_test is None:
        return {"preds": everyone}
    found = {(int(release[i, 0]), int(release[i, 1])): everyone[i] for i in sample_ids}
    return {"preds": everyone, "release": release, "pred": submission(Path(official_test), found)}


def _number(paths: list[str]) -> tuple[list[str], np.ndarray]:
    """The different paths in order of first appearance, and the row of each path among them."""
    rows: dict[str, int] = {}
    numbers = [rows.setdefault(path, len(rows)) for path in paths]
    return list(rows), np.array(numbers, np.int64)


def _suspect_one_based(records: PoseRecords, file: str) -> None:
    """Warns if labels that should count from 0 reach the pixel after the last one and never the first."""
    points, labelled = records.keypoints[..., :2], records.keypoints[..., 2] > 0
    ends = records.image_sizes[records.image_rows][:, None, ::-1]
    beyond, first = ((points == ends) & labelled[..., None]).sum(), ((points == 0) & labelled[..., None]).sum()
    if beyond and not first:
        warnings.warn(
            f"{file}: {beyond} coordinates equal the width or height of their image and none is 0: these keypoints "
            "seem to count pixels from 1; set first_pixel: 1 if they do",
            stacklevel=3,
        )
