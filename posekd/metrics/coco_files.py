"""Reading and checking of COCO keypoint labels and results, so that a mistake is reported and not scored."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from posekd.skeleton import COCO, DEFAULT_SIGMA, skeleton_from_category

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


def read_json(source: Source) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON.
    """
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None


def read_labels(source: Mapping[str, Any] | Source) -> Labels:
    """Reads and checks a COCO keypoint ground truth.

    Raises:
        NoLabelsError: there are no annotations.
        ValueError: not a COCO file, or an annotation that cannot be scored.
    """
    data, name = (source, "the ground truth") if isinstance(source, Mapping) else (read_json(source), str(source))
    if not isinstance(data, Mapping) or "images" not in data:
        raise ValueError(f"{name} is not a COCO annotation file: it has no 'images' list")
    if not data.get("annotations"):
        raise NoLabelsError(f"{name} has no labels: results are written, not scored")
    categories = [c for c in data.get("categories") or () if c.get("keypoints")] or list(data.get("categories") or ())
    wanted = {c["id"] for c in categories}
    found = [a for a in data["annotations"] if a.get("category_id") in wanted]
    if not any("keypoints" in a for a in found):
        raise ValueError(f"{name} labels no keypoints: give person_keypoints_*.json rather than instances_*.json")
    names = _keypoint_names(categories, found, name)
    image_ids = tuple(dict.fromkeys(image["id"] for image in data["images"]))
    annotations = tuple(_annotation(a, i, len(names), name) for i, a in enumerate(found, start=1))
    _refuse_unknown((a["image_id"] for a in annotations), image_ids, f"{name}: annotations are of")
    repeated = [i for i, n in Counter(a["source_id"] for a in annotations).items() if n > 1]
    if repeated:
        raise ValueError(f"{name}: {len(repeated)} annotation ids occur more than once, first {repeated[0]}")
    return Labels(name, image_ids, tuple(dict(c) for c in categories), names, annotations)


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
    results = [dict(r) for r in data]
    for i, result in enumerate(results):
        missing = [k for k in ("image_id", "category_id", "keypoints", "score") if k not in result]
        if missing:
            raise ValueError(f"{name}: entry {i} has no {', '.join(map(repr, missing))}")
        _check_numbers(result, f"{name}: entry {i} (image {result['image_id']})", len(labels.keypoints))
    _refuse_unknown((r["image_id"] for r in results), labels.image_ids, f"{name} are for")
    known = {c["id"] for c in labels.categories}
    strange = sorted({r["category_id"] for r in results} - known)
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
        if COCO.num_keypoints == K:
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
    counts = {str(c.get("name", c["id"])): len(c["keypoints"]) for c in categories if c.get("keypoints")}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{name}: categories with different numbers of keypoints cannot be scored together: {counts}")
    if counts:
        return tuple(next(c["keypoints"] for c in categories if c.get("keypoints")))
    K = next(len(a["keypoints"]) for a in annotations if "keypoints" in a) // 3
    return tuple(f"keypoint {k}" for k in range(K))


def _annotation(raw: Mapping[str, Any], new_id: int, num_keypoints: int, name: str) -> dict[str, Any]:
    where = f"{name}: annotation {raw.get('id')} (image {raw.get('image_id')})"
    missing = [k for k in ("id", "image_id", "bbox", "keypoints", "area") if k not in raw]
    if missing:
        hint = "; the OKS needs the object's area in square pixels" if "area" in missing else ""
        raise ValueError(f"{where} has no {', '.join(map(repr, missing))}{hint}")
    keypoints = raw["keypoints"]
    if len(keypoints) != 3 * num_keypoints:
        raise ValueError(f"{where} has {len(keypoints)} keypoint values; {num_keypoints} keypoints need 3 each")
    if not all(map(math.isfinite, (*keypoints, *raw["bbox"], raw["area"]))):
        raise ValueError(f"{where} holds a NaN or infinite number; label a missing keypoint as 0, 0, 0")
    return {
        "id": new_id,
        "source_id": raw["id"],
        "image_id": raw["image_id"],
        "category_id": raw["category_id"],
        "bbox": list(raw["bbox"]),
        "area": float(raw["area"]),
        "iscrowd": int(raw.get("iscrowd", 0)),
        "keypoints": list(keypoints),
        "num_keypoints": raw.get("num_keypoints", sum(v > 0 for v in keypoints[2::3])),
    }


def _check_numbers(result: Mapping[str, Any], where: str, num_keypoints: int) -> None:
    values = result["keypoints"]
    if len(values) != 3 * num_keypoints:
        raise ValueError(f"{where} has {len(values)} keypoint values; {num_keypoints} keypoints need 3 each")
    if not (all(map(math.isfinite, values)) and math.isfinite(result["score"])):
        raise ValueError(f"{where} holds a keypoint or score that is NaN or infinite: it cannot be ranked or placed")


def _refuse_unknown(ids: Iterable[int], known: Iterable[int], what: str) -> None:
    unknown = sorted(set(ids) - set(known))
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{what} {len(unknown)} images that the ground truth does not list: ids {shown}")
