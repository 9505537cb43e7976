"""Reading and checking of COCO keypoint labels and results, so that a mistake is reported and not scored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from posekd import coco_rules
from posekd.coco_rules import read_json
from posekd.skeleton import COCO, DEFAULT_SIGMA, skeleton_from_category
from posekd.whole_body import is_whole_body, join_labels, join_result

Source = str | PathLike[str]


class NoLabelsError(ValueError):
    """The ground truth holds no annotations (test-dev): results can be written, but not scored here."""


@dataclass(frozen=True)
class Labels:
    """The part of a COCO keypoint file that scoring needs.

    Attributes:
        name: the file, for messages.
        image_ids: every image of the file, once, in its order.
        categories: the keypoint categories, as in the file.
        keypoints: K keypoint names.
        annotations: copies of the keypoint annotations with `id` renumbered from 1 (pycocotools takes the
            id 0 for "unmatched") and the file's own id in `source_id`.
    """

    name: str
    image_ids: tuple[int, ...]
    categories: tuple[dict[str, Any], ...]
    keypoints: tuple[str, ...]
    annotations: tuple[dict[str, Any], ...]


def read_labels(source: Mapping[str, Any] | Source, box_share: float | None = None, whole_body: bool = False) -> Labels:
    """Reads and checks a COCO keypoint ground truth by the rules of `posekd.coco_rules`.

    Args:
        source: the file, or its content.
        box_share: areas are this share of the boxes, whatever the file says (CrowdPose).
        whole_body: join COCO-WholeBody's lists, see `posekd.whole_body`.

    Raises:
        NoLabelsError: there are no annotations.
        ValueError: not a COCO file, or an annotation that cannot be scored.
    """
    data, name = (source, "the ground truth") if isinstance(source, Mapping) else (read_json(source), str(source))
    if not isinstance(data, Mapping) or "images" not in data:
        raise ValueError(f"{name} is not a COCO annotation file: it has no 'images' list")
    if not data.get("annotations"):
        raise NoLabelsError(f"{name} has no labels: results are written, not scored")
    if whole_body and isinstance(data.get("categories"), (list, tuple)):
        data = join_labels(data, name)
    remarks: coco_rules.Remarks = {}
    everything = coco_rules.entries({"categories": [], **data}, "categories", name)
    categories = [c for c in everything if coco_rules.keypoint_names(c, name)] or everything
    found = coco_rules.of_categories(
        coco_rules.entries(data, "annotations", name),
        [c["id"] for c in categories],
        [c["id"] for c in everything],
        name,
        remarks,
    )
    if not any("keypoints" in a for a in found):
        raise ValueError(f"{name} labels no keypoints: give person_keypoints_*.json rather than instances_*.json")
    names = _keypoint_names(categories, found, name)
    image_ids = tuple(dict.fromkeys(image["id"] for image in coco_rules.entries(data, "images", name)))
    coco_rules.refuse_unknown(
        (a.get("image_id") for a in found), image_ids, f"{name}: annotations are of", "the ground truth"
    )
    coco_rules.refuse_repeated(found, name)
    annotations = tuple(_annotation(a, i, names, name, remarks, box_share) for i, a in enumerate(found, start=1))
    if not isinstance(source, Mapping):  # whoever opened the data has told its remarks
        coco_rules.tell(remarks)
    kept = tuple(coco_rules.with_good_edges(c, name, {}) for c in categories)
    return Labels(name, image_ids, kept, names, annotations)


def read_results(source: Sequence[Mapping[str, Any]] | Source, labels: Labels) -> list[dict[str, Any]]:
    """Reads keypoint results in COCO's format and checks that they belong to `labels`.

    Returns:
        Shallow copies, in the given order.

    Raises:
        ValueError: no list, an unknown image or category, or keypoints or scores that cannot be scored.
    """
    if isinstance(source, str | PathLike):
        data, name = read_json(source), str(source)
    else:
        data, name = source, "the results"
    if isinstance(data, Mapping) or not isinstance(data, Sequence):
        raise ValueError(f"{name} must be a list of detections (COCO's results format), not {type(data).__name__}")
    results, whole_body = [], is_whole_body(labels.keypoints)
    for i, entry in enumerate(data):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{name}: entry {i} must be an object (COCO's results format), got {entry!r:.80}")
        result = join_result(entry, f"{name}: entry {i}") if whole_body else dict(entry)
        results.append(result)
        missing = [k for k in ("image_id", "category_id", "keypoints", "score") if k not in entry]
        if missing:
            raise ValueError(f"{name}: entry {i} has no {', '.join(map(repr, missing))}")
        where = f"{name}: entry {i} (image {result['image_id']})"
        for key in ("image_id", "category_id"):
            result[key] = coco_rules.identifier(result[key], f"{where}: {key}")
        _check_numbers(result, where, len(labels.keypoints))
    coco_rules.refuse_unknown((r["image_id"] for r in results), labels.image_ids, f"{name} are for", "the ground truth")
    known = {c["id"] for c in labels.categories}
    strange = sorted({r["category_id"] for r in results} - known, key=str)
    if strange:
        raise ValueError(f"{name} have category ids {strange}, but {labels.name} has {sorted(known)}")
    return results


def resolve_sigmas(labels: Labels, sigmas: Sequence[float] | None) -> tuple[float, ...]:
    """OKS constants for the label file's keypoints.

    Those given are checked. Otherwise they are COCO's if the keypoints are COCO's 17, else a default with a warning.

    Raises:
        ValueError: a wrong number of sigmas, or one that is not positive.
    """
    K = len(labels.keypoints)
    if sigmas is None:
        named = next((c for c in labels.categories if c.get("keypoints")), None)
        if named is not None:
            return skeleton_from_category(named).sigmas
        if COCO.num_keypoints == K:  # names are all that would tell, and there are none
            warnings.warn(
                f"{labels.name} has {K} unnamed keypoints: they are taken for COCO's, in its order; pass `sigmas`, or "
                "name them in the category, if they are others",
                stacklevel=3,
            )
            return COCO.sigmas
        warnings.warn(
            f"{labels.name} has {K} unnamed keypoints and no OKS sigmas were given: using {DEFAULT_SIGMA} "
            "for each. AP depends on them; pass `sigmas` for meaningful numbers.",
            stacklevel=3,
        )
        return (DEFAULT_SIGMA,) * K
    values = tuple(float(s) for s in sigmas)
    if len(values) != K:
        raise ValueError(f"{len(values)} sigmas were given, but {labels.name} has {K} keypoints")
    if not all(s > 0 and math.isfinite(s) for s in values):
        raise ValueError(f"sigmas must be positive numbers, got {values}")
    return values


def _keypoint_names(
    categories: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]], name: str
) -> tuple[str, ...]:
    counts = {
        str(c.get("name", c["id"])): len(coco_rules.keypoint_names(c, name)) for c in categories if c.get("keypoints")
    }
    if len(set(counts.values())) > 1:
        raise ValueError(f"{name}: categories with different numbers of keypoints cannot be scored together: {counts}")
    if counts:
        return tuple(next(c["keypoints"] for c in categories if c.get("keypoints")))
    K = next((len(a["keypoints"]) for a in annotations if isinstance(a.get("keypoints"), list)), 0) // 3
    if not K:
        raise ValueError(f"{name}: neither its categories nor its annotations have a list of keypoints")
    return tuple(f"keypoint {k}" for k in range(K))


def _annotation(
    raw: Mapping[str, Any],
    new_id: int,
    names: Sequence[str],
    name: str,
    remarks: coco_rules.Remarks,
    box_share: float | None,
) -> dict[str, Any]:
    who = coco_rules.who_is(raw, name)
    checked = coco_rules.check_annotation(raw, names, who, remarks, box_share=box_share)
    return {**checked, "id": new_id, "source_id": raw["id"]}


def _check_numbers(result: Mapping[str, Any], where: str, num_keypoints: int) -> None:
    values = result["keypoints"]
    count = len(values) if isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) else "no"
    if count != 3 * num_keypoints:
        raise ValueError(f"{where} has {count} keypoint values; {num_keypoints} keypoints need 3 each")
    for what, given in (("keypoints", values), ("score", [result["score"]])):
        found = coco_rules.vector(given)
        if found is None:
            raise ValueError(f"{where}: {what} must be numbers, got {given!r:.80}")
        if not np.isfinite(found).all():
            raise ValueError(
                f"{where} holds a keypoint or score that is NaN or infinite: it cannot be ranked or placed"
            )
