"""Files of predictions for a dataset's labelled persons: JSON, and the `.mat` variables of MPII's and LSP's scripts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posekd.data import PoseRecords, PoseSource
from posekd.data.sources.coco_json import finite_numbers, load_json
from posekd.data.sources.matlab import load_mat, save_mat, scipy_io
from posekd.data.sources.people import PeopleInFiles
from posekd.files import write_atomically
from posekd.structures import Instances


def predictions(keypoints: np.ndarray, sample_ids: np.ndarray, source: PoseSource) -> list[dict[str, Any]]:
    """Poses as plain values in the order of the label file.

    Args:
        keypoints: `[P, K, 3]` (x, y, score) in pixels of the images, counting from 0.
        sample_ids: `[P]`.
        source: the dataset.

    Returns:
        `{image, image_id, sample_id, keypoints: 3K numbers, score}`; coordinates to a thousandth of a pixel.
    """
    records = source.records
    rows = rows_of(sample_ids, records)
    values = keypoints.astype(np.float64)
    values[..., :2] = values[..., :2].round(3)
    return [
        {
            "image": os.path.basename(source.image_name(int(records.image_rows[rows[p]]))),
            "image_id": int(records.image_ids[records.image_rows[rows[p]]]),
            "sample_id": int(sample_ids[p]),
            "keypoints": values[p].reshape(-1).tolist(),
            "score": float(values[p, :, 2].mean()),
        }
        for p in np.argsort(sample_ids, kind="stable")
    ]


def check_results_file(source: PoseSource, path: Path) -> None:
    """Refuses a `.mat` that could not be written, before an evaluation rather than after it.

    Raises:
        ImportError: scipy is not installed.
        ValueError: the dataset has no such file.
    """
    if path.suffix == ".mat":
        if not isinstance(source, PeopleInFiles):
            raise ValueError(f"{path}: this dataset's predictions are written as .json, not as .mat")
        scipy_io(f"{path} would be a MATLAB file")


def write_predictions(source: PoseSource, people: Instances, path: Path) -> None:
    """Writes the poses of the dataset's persons: `.json` as in `predictions`, or the `.mat` of its scripts."""
    results = predictions(people.keypoints.numpy(), people.sample_ids.numpy(), source)
    if path.suffix == ".mat":
        write_mat(results, source, path)
    else:
        write_atomically(path, json.dumps(results))


def write_mat(poses: Sequence[Mapping[str, Any]], source: PoseSource, path: Path) -> None:
    """Writes predictions as a `.mat` file with the variables that the dataset's evaluation scripts read.

    Args:
        poses: what `predictions` gives.
        source: the dataset, checked by `check_results_file`.
        path: the file.
    """
    assert isinstance(source, PeopleInFiles)
    K = source.records.skeleton.num_keypoints
    ids = np.array([pose["sample_id"] for pose in poses], np.int64)
    points = np.array([pose["keypoints"] for pose in poses], np.float64).reshape(-1, K, 3)
    save_mat(path, source.to_mat(ids, points[..., :2]))


def read_predictions(path: Path, records: PoseRecords) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of predictions: what `posekd eval` writes, or a `.mat` of HRNet's or Tompson's.

    Args:
        path: `.json`, a list of `{sample_id, keypoints}`, counting pixels from 0; or `.mat` with `preds` `[N, K, 2]` or
            `pos_pred_src` `[K, 2, N]` for all people in the order of the label file (MPII's count from 1).
        records: the people.

    Returns:
        Keypoints `[P, K, 2]` counting from 0, and sample ids `[P]`. People whose row in a `.mat` is all NaN are left
        out.

    Raises:
        FileNotFoundError, ImportError, ValueError: the file is missing or malformed.
    """
    return _from_mat(path, records) if path.suffix == ".mat" else _from_json(path, records.skeleton.num_keypoints)


def _from_json(path: Path, K: int) -> tuple[np.ndarray, np.ndarray]:
    entries = load_json(path, "score_only")
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and {"sample_id", "keypoints"} <= e.keys() for e in entries
    ):
        raise ValueError(f"{path} must be a list of predictions with sample_id and keypoints")
    for row, entry in enumerate(entries):
        if type(entry["sample_id"]) is not int:
            raise ValueError(f"{path}: prediction {row}: sample_id must be a whole number, got {entry['sample_id']!r}")
    points = [
        finite_numbers(e["keypoints"], 3 * K, f"{path}: the prediction for {e['sample_id']}: keypoints (x, y, score)")
        for e in entries
    ]
    ids = np.array([e["sample_id"] for e in entries], np.int64)
    return np.array(points, np.float64).reshape(-1, K, 3)[..., :2], ids


def _from_mat(path: Path, records: PoseRecords) -> tuple[np.ndarray, np.ndarray]:
    N, K = len(records), records.skeleton.num_keypoints
    content = load_mat(path, "score_only")
    name = next((name for name in ("preds", "pos_pred_src") if name in content), None)
    if name is None:
        raise ValueError(f"{path} has neither 'preds' nor 'pos_pred_src'; it has {sorted(content)}")
    try:
        found = np.asarray(content[name], np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {name} must be numbers") from None
    if found.ndim == 2:  # of one person
        found = found[None] if name == "preds" else found[..., None]
    if name == "pos_pred_src" and found.ndim == 3:
        found = found.transpose(2, 0, 1)
    if found.ndim != 3 or found.shape[:2] != (N, K) or found.shape[2] < 2:
        raise ValueError(f"{path}: {name} must hold (x, y) of {N} people x {K} keypoints, it has shape {found.shape}")
    given = ~np.isnan(found[..., :2]).all(axis=(1, 2))
    return found[given, :, :2] - records.first_pixel, np.sort(records.sample_ids)[given]


def rows_of(sample_ids: np.ndarray, records: PoseRecords) -> np.ndarray:
    """The record of each sample id.

    Raises:
        ValueError: an id that the records do not have, or one that occurs twice.
    """
    rows = {int(i): row for row, i in enumerate(records.sample_ids)}
    unknown = [int(i) for i in sample_ids if int(i) not in rows]
    if unknown:
        raise ValueError(f"predictions for {len(unknown)} people that the labels do not list: {unknown[:5]}")
    ids, counts = np.unique(sample_ids, return_counts=True)
    if (counts > 1).any():
        twice = ids[counts > 1].tolist()
        raise ValueError(
            f"{len(twice)} people have more than one prediction, which would count them twice: {twice[:5]}"
        )
    return np.array([rows[int(i)] for i in sample_ids], np.int64)
