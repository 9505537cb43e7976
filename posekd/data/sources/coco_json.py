"""Reading COCO JSON for training: `posekd.coco_rules`, and what images and records need beyond scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posekd import coco_rules
from posekd.coco_rules import MAX_PIXELS, Remarks
from posekd.skeleton import COCO, CROWDPOSE
from posekd.whole_body import join_labels


def load_json(file: Path, setting: str) -> Any:
    """Parses a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    return coco_rules.read_json(file, setting)


def load_labels(file: Path, remarks: Remarks, whole_body: bool = False) -> dict[str, Any]:
    """Parses a COCO annotation file.

    Args:
        file: the file.
        remarks: to add to.
        whole_body: join COCO-WholeBody's lists, see `posekd.whole_body`.

    Raises:
        FileNotFoundError, ValueError: as `load_json`, or it has no images or categories, or ids that are none.
    """
    content = load_json(file, "annotations")
    if whole_body and isinstance(content, Mapping) and isinstance(content.get("categories"), list):
        content = join_labels(content, str(file))
    if not _has(content, "annotations") and not _has(content, "categories"):  # a bare list of images
        content = {**content, "categories": [{"id": 1, "name": "person"}]}
    keys = [k for k in ("images", "categories", "annotations") if k != "annotations" or _has(content, k)]
    labels = {key: coco_rules.entries(content, key, str(file)) for key in keys}
    for key in keys:
        for entry in labels[key]:
            _refuse_texts(entry, f"{file}: {_ONE[key]}")
    labels["categories"] = [_category(category, file, remarks) for category in labels["categories"]]
    return labels


_ONE = {"images": "image", "categories": "category", "annotations": "annotation"}


def _has(content: Any, key: str) -> bool:
    return not isinstance(content, Mapping) or key in content


def _refuse_texts(entry: Mapping[str, Any], who: str) -> None:
    """Ids that scoring may take as texts are numbers of arrays here."""
    for key in ("id", "image_id", "category_id"):
        if isinstance(entry.get(key), str):
            coco_rules.whole(entry[key], f"{who} {entry.get('id')!r}: {key}")


def _category(category: Mapping[str, Any], file: Path, remarks: Remarks) -> dict[str, Any]:
    names = coco_rules.keypoint_names(category, str(file))
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: category {category.get('name')!r}: keypoints must be different, got {names!r:.200}")
    if tuple(names) == CROWDPOSE.keypoints:  # its files have COCO's edges, for 17 points: not used
        return dict(category)
    return coco_rules.with_good_edges(category, str(file), remarks)


def unique_images(labels: Mapping[str, Any], file: Path) -> dict[int, dict[str, Any]]:
    """Image entries by id, in the file's order; repeated entries count once if they agree.

    Raises:
        ValueError: an entry lacks a field, or two entries of one id differ.
    """
    images: dict[int, dict[str, Any]] = {}
    for entry in labels["images"]:
        who = f"{file}: image {entry['id']}"
        missing = [key for key in ("file_name", "height", "width") if entry.get(key) is None]
        if missing:
            raise ValueError(f"{who} has no {', '.join(missing)}")
        name = entry["file_name"]
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"{who}: file_name must be text, got {name!r:.80}")
        height, width = (coco_rules.whole(entry[key], f"{who}: {key}") for key in ("height", "width"))
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"{who} is {width} x {height} pixels; 1 to {MAX_PIXELS} can be read")
        entry.update(height=height, width=width)
        first = images.setdefault(entry["id"], entry)
        for key in ("file_name", "height", "width"):
            if first[key] != entry[key]:
                raise ValueError(
                    f"{file}: image id {entry['id']} is listed twice, with {key} {first[key]!r} and {entry[key]!r}"
                )
    return images


def pick_categories(
    labels: Mapping[str, Any], name: str | None, file: Path, keypoints: Sequence[str] = COCO.keypoints
) -> list[dict[str, Any]]:
    """The categories whose persons are meant: the one named, or those with keypoints, if these are the same for all.

    COCO's test splits list `person` without keypoints, and lists of images have no categories at all.

    Args:
        labels: of the file.
        name: of the category; None for all with keypoints.
        file: for messages.
        keypoints: names that `person` gets in a file without labels, where it has none.

    Raises:
        ValueError: none, or several of different keypoints.
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
    if any(category["keypoints"] != chosen[0]["keypoints"] for category in chosen[1:]):
        candidates = [category.get("name") for category in chosen]
        raise ValueError(
            f"{file}: several categories have different keypoints, {candidates}; choose one (setting `category`, "
            "option --category)"
        )
    categories = [dict(category) for category in chosen]
    if "annotations" not in labels and categories[0].get("name") == "person":
        categories[0].setdefault("keypoints", list(keypoints))
    return categories


def finite_numbers(values: Any, count: int, who: str) -> list[float]:
    """Reads `count` finite floats; an error message begins with `who`.

    Raises:
        ValueError: a wrong count, something that is not a number, NaN or infinity.
    """
    found: list[float] = coco_rules.numbers(values, count, who).tolist()
    return found


def labelled_points(annotation: Mapping[str, Any]) -> np.ndarray | None:
    """Keypoints of a checked annotation, float32 `[K, 3]`, unlabelled ones zeroed; None if nobody is labelled."""
    points = np.array(annotation["keypoints"], np.float64).reshape(-1, 3)
    labelled = points[:, 2] > 0
    if not labelled.any() or annotation["num_keypoints"] == 0:
        return None
    points[(points[:, 2] != 1) & labelled, 2] = 2  # a confidence: visible
    return np.where(labelled[:, None], points, 0.0).astype(np.float32)
