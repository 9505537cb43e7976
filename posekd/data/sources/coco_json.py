"""Reading COCO JSON: every broken entry is named, with its value and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from posekd.skeleton import COCO, CROWDPOSE, Skeleton


def load_json(file: Path, setting: str) -> Any:
    """Parses a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist (setting `{setting}`)") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ValueError(f"{file} cannot be read (setting `{setting}`): {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON (setting `{setting}`): {error}") from error


def load_labels(file: Path) -> dict[str, Any]:
    """Parses a COCO annotation file.

    Raises:
        FileNotFoundError, ValueError: as `load_json`, or it has no images or categories.
    """
    content = load_json(file, "annotations")
    for key, hints in _FIELDS.items():
        optional = key == "annotations" and isinstance(content, dict) and key not in content
        if not optional and (not isinstance(content, dict) or not isinstance(content.get(key), list)):
            raise ValueError(f"{file} is not a COCO annotation file: it has no list {key!r}")
        for i, entry in enumerate(() if optional else content[key]):
            _check_entry(entry, hints, f"{file}: {key}[{i}]")
    for category in content["categories"]:
        _check_category(category, f"{file}: category {category.get('name', '?')!r}")
    return content


_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int,), "file_name": (str,), "height": (int,), "width": (int,)},
    "categories": {"id": (int,), "name": (str,), "keypoints": (list,), "skeleton": (list,)},
    "annotations": {
        "id": (int,),
        "image_id": (int,),
        "category_id": (int,),
        "iscrowd": (int, bool),
        "num_keypoints": (int,),
        "area": (int, float),
    },
}
"""Types of the values that are read, if given. Whether a value must be given is checked where it is used."""

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}


def _check_entry(entry: Any, hints: Mapping[str, tuple[type, ...]], who: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{who} must be an object, got {entry!r:.80}")
    for key, kinds in hints.items():
        value = entry.get(key)
        if (value is None and key not in ("id", "area")) or key not in entry:
            continue
        if type(value) not in kinds or (type(value) is int and abs(value) >= 2**63):
            raise ValueError(f"{who} (id {entry.get('id')!r}): {key} must be {_WORDS[kinds[-1]]}, got {value!r:.80}")


def _check_category(category: Mapping[str, Any], who: str) -> None:
    if "id" not in category:
        raise ValueError(f"{who} has no id")
    names = category.get("keypoints") or []
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{who}: keypoints must be different names, got {names!r:.200}")
    if tuple(names) == CROWDPOSE.keypoints:  # its files have COCO's edges, for 17 points: not used
        return
    for edge in category.get("skeleton") or []:
        known = isinstance(edge, list) and len(edge) == 2 and all(type(joint) is int for joint in edge)
        if not known or (names and not all(1 <= joint <= len(names) for joint in edge)):
            raise ValueError(
                f"{who}: skeleton must be pairs of keypoint numbers, counted from 1 to {len(names)}, got {edge!r:.80}"
            )


def unique_images(labels: Mapping[str, Any], file: Path) -> dict[int, dict[str, Any]]:
    """Image entries by id, in the file's order; repeated entries count once if they agree.

    Raises:
        ValueError: an entry lacks a field, or two entries of one id differ.
    """
    images: dict[int, dict[str, Any]] = {}
    for i, entry in enumerate(labels["images"]):
        missing = [key for key in ("id", "file_name", "height", "width") if entry.get(key) is None]
        if missing:
            raise ValueError(f"{file}: image {entry.get('id', f'number {i}')} has no {', '.join(missing)}")
        if not (0 < entry["height"] < 2**31 and 0 < entry["width"] < 2**31):
            raise ValueError(f"{file}: image {entry['id']} is {entry['width']} x {entry['height']} pixels")
        first = images.setdefault(entry["id"], entry)
        for key in ("file_name", "height", "width"):
            if first[key] != entry[key]:
                raise ValueError(
                    f"{file}: image id {entry['id']} is listed twice, with {key} {first[key]!r} and {entry[key]!r}"
                )
    return images


def pick_category(labels: Mapping[str, Any], name: str | None, file: Path) -> dict[str, Any]:
    """The category whose persons are read: the one named, or the only one with keypoints.

    COCO's test splits list `person` without keypoints; it then gets COCO's 17.

    Raises:
        ValueError: no such category, or several and no name to choose by.
    """
    categories = labels["categories"]
    names = [category.get("name") for category in categories]
    if name is not None:
        chosen = [category for category in categories if category.get("name") == name]
        if not chosen:
            raise ValueError(f"{file} has no category {name!r}; it has {names}")
    else:
        chosen = [category for category in categories if category.get("keypoints")]
        if not chosen and "annotations" not in labels:
            chosen = [category for category in categories if category.get("name") == "person"]
    if not chosen:
        raise ValueError(f"{file}: none of its categories {names} has 'keypoints': not a keypoint annotation file")
    if len(chosen) > 1:
        candidates = [category.get("name") for category in chosen]
        raise ValueError(f"{file}: several categories have keypoints, {candidates}; choose one (setting `category`)")
    category = dict(chosen[0])
    if "annotations" not in labels and category.get("name") == "person":
        category.setdefault("keypoints", list(COCO.keypoints))
    return category


def finite_numbers(values: Any, count: int, who: str) -> list[float]:
    """Reads `count` finite floats; an error message begins with `who`.

    Raises:
        ValueError: a wrong count, something that is not a number, NaN or infinity.
    """
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ValueError(f"{who} must be {count} numbers, got {values!r:.80}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{who} must be {count} finite numbers, got {values!r:.80}")
    return [float(value) for value in values]


def check_keypoints(annotation: Mapping[str, Any], skeleton: Skeleton, who: str) -> np.ndarray | None:
    """An annotation's keypoints, float32 `[K, 3]`, unlabelled ones zeroed; None if none is labelled.

    Raises:
        ValueError: not 3 K numbers, a visibility other than 0, 1, 2, or a labelled keypoint that is not finite.
    """
    K = skeleton.num_keypoints
    values = annotation.get("keypoints")
    if values is None and annotation.get("num_keypoints", 0) == 0:
        return None
    if not isinstance(values, list) or len(values) != 3 * K:
        count = len(values) if isinstance(values, list) else "no"
        raise ValueError(
            f"{who} has {count} keypoint values; category {skeleton.name!r} has {K} keypoints, that is {3 * K} "
            "values (x, y, visibility each)"
        )
    try:
        keypoints = np.array(values, np.float64).reshape(K, 3)
    except (TypeError, ValueError):
        raise ValueError(f"{who}: keypoints must be numbers, got {values!r:.80}") from None
    if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
        bad = keypoints[~np.isin(keypoints[:, 2], (0, 1, 2)), 2][0]
        raise ValueError(f"{who}: visibility must be 0 (unlabelled), 1 (occluded) or 2 (visible), got {bad:g}")
    labelled = keypoints[:, 2] > 0
    keypoints[np.abs(keypoints) > 1e30] = np.inf  # more than float32 holds
    if not np.isfinite(keypoints[labelled]).all():
        name = skeleton.keypoints[int(np.flatnonzero(labelled & ~np.isfinite(keypoints).all(1))[0])]
        raise ValueError(f"{who}: keypoint {name!r} is labelled but its coordinates are not finite")
    if not labelled.any() or annotation.get("num_keypoints") == 0:
        return None
    return np.where(labelled[:, None], keypoints, 0.0).astype(np.float32)
