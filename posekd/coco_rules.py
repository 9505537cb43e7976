"""What is believed of a COCO-format label file: one set of rules for training, evaluation and scoring.

Each rule refuses in a sentence that begins with who is meant, or repairs and leaves a remark that is counted. The
measure is pycocotools: labels that it can score are not changed in a way that would change its number. `strict` adds
what training would learn nonsense from. `docs/data.md` has the rules in one table.
"""

from __future__ import annotations

import json
import operator
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1e30
"""A coordinate beyond it is no number: float32 ends at 3.4e38, and areas are products."""
MAX_PIXELS = 1 << 28
"""Pixels of an image that a label file may state: 16384 x 16384. Masks of its size are made."""

AREA_OF_BOX = 0.53
"""A person's area as a share of its box, in CrowdPose."""

Remarks = dict[str, list[str]]
"""What was repaired or left out -> the annotations it was done to."""


def remark(remarks: Remarks, what: str, who: str) -> None:
    """Notes a repair, to be told by `tell` once for all."""
    remarks.setdefault(what, []).append(who)


def tell(remarks: Remarks, stacklevel: int = 3) -> None:
    """Warns once for each kind of remark, with the count and the first of them."""
    for what, whom in remarks.items():
        warnings.warn(f"{whom[0]}: {what} ({len(whom)} such in the file).", stacklevel=stacklevel)


def read_json(source: str | PathLike[str], setting: str = "") -> Any:
    """Parses a JSON file.

    Args:
        source: the file.
        setting: what named it, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or cannot be read.
    """
    file, where = Path(source), f" (setting `{setting}`)" if setting else ""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist{where}" if setting else f"no file {file}") from None
    except (OSError, MemoryError) as error:
        raise ValueError(f"{file} cannot be read{where}: {getattr(error, 'strerror', None) or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not {'JSON' if setting else 'a JSON file'}{where}: {error}") from error


def whole(value: Any, who: str) -> int:
    """A whole number, also one that is written 1.0.

    Raises:
        ValueError: anything else, with its type if that is text.
    """
    if type(value) is int and abs(value) < 2**63:
        return value
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        if isinstance(number, bool) or abs(operator.index(number)) >= 2**63:
            raise TypeError
        return operator.index(number)
    except TypeError:
        kind = "the text " if isinstance(value, str) else ""
        raise ValueError(f"{who} must be a whole number, got {kind}{value!r:.80}") from None


def identifier(value: Any, who: str) -> int | str:
    """An id: a whole number or, for scoring, a text."""
    return value if isinstance(value, str) else whole(value, who)


def refuse_unknown(ids: Iterable[Any], known: Iterable[Any], what: str, whose: str) -> None:
    """Refuses ids that are not among `known`; where only their type is another one, the message says so.

    Raises:
        ValueError: `what` is of images that `whose` does not list.
    """
    listed = set(known)
    unknown = sorted(set(ids) - listed, key=str)
    if unknown:
        _refuse_other_type(unknown[0], listed, f"{what} the image")
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{what} {len(unknown)} images that {whose} does not list: ids {shown}")


def _refuse_other_type(value: Any, known: Iterable[Any], what: str) -> None:
    twin = next((other for other in known if str(other) == str(value)), None)
    if twin is not None:
        raise ValueError(f"{what} {value!r}, an id that the labels write {twin!r}: one is text, the other a number")


def numbers(values: Any, count: int, who: str) -> np.ndarray:
    """`count` finite numbers, float64.

    Raises:
        ValueError: a wrong count, something that is not a number, NaN, infinity or beyond `LARGEST`.
    """
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ValueError(f"{who} must be {count} numbers, got {values!r:.80}")
    array = vector(values)
    if array is None or not (np.abs(array) <= LARGEST).all():
        raise ValueError(f"{who} must be {count} finite numbers, got {values!r:.80}")
    return array


def usable(values: Any) -> np.ndarray:
    """Whether numbers are finite and not beyond `LARGEST`: bool, of their shape."""
    return np.asarray(np.abs(np.asarray(values, np.float64)) <= LARGEST)


def vector(values: Any) -> np.ndarray | None:
    """Values as a float64 vector; None where they are no numbers."""
    try:
        array = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind in "iuf" and array.ndim == 1 else None
    except (TypeError, ValueError):
        return None


def entries(content: Any, key: str, name: str) -> list[dict[str, Any]]:
    """The objects of a list of a label file, copied, with ids that are whole numbers or texts.

    Args:
        content: of the file.
        key: `images`, `annotations` or `categories`.
        name: of the file.

    Raises:
        ValueError: no list, an entry that is no object, or an id that is none.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get(key), (list, tuple)):
        raise ValueError(f"{name} is not a COCO annotation file: it has no list {key!r}")
    found = []
    for i, entry in enumerate(content[key]):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{name}: {key}[{i}] must be an object, got {entry!r:.80}")
        copy = dict(entry)
        for field in ("id", "image_id", "category_id"):
            if type(copy.get(field, 0)) is not int and not (copy[field] is None and field != "id"):
                copy[field] = identifier(copy[field], f"{name}: {key}[{i}] (id {copy.get('id')!r}): {field}")
        found.append(copy)
    if key == "annotations":
        return _with_ids(found, name)
    nameless = next((i for i, entry in enumerate(found) if "id" not in entry), None)
    if nameless is not None:
        raise ValueError(f"{name}: {key}[{nameless}] has no id")
    return found


def _with_ids(annotations: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Annotations with ids: their places where the file gives none to anybody."""
    without = [i for i, annotation in enumerate(annotations) if "id" not in annotation]
    if without and len(without) < len(annotations):
        raise ValueError(f"{name}: annotations[{without[0]}] has no id, and others have: give all of them one, or none")
    return [{"id": i, **annotation} for i, annotation in enumerate(annotations)] if without else annotations


def of_categories(
    annotations: Sequence[dict[str, Any]], ids: Iterable[Any], all_ids: Iterable[Any], name: str, remarks: Remarks
) -> list[dict[str, Any]]:
    """The annotations of some categories; those of a category that the file does not list are remarked on.

    Args:
        annotations: of the file.
        ids: of the categories that are meant.
        all_ids: of all the file's categories.
        name: of the file.
        remarks: to add to.

    Raises:
        ValueError: an id of a category differs from the file's by its type only.
    """
    meant, listed = set(ids), set(all_ids)
    strange = [a for a in annotations if a.get("category_id") not in listed]
    for annotation in strange:
        _refuse_other_type(annotation.get("category_id"), listed, f"{who_is(annotation, name)} is of the category")
        remark(remarks, "is of a category that the file does not list: left out", who_is(annotation, name))
    return [a for a in annotations if a.get("category_id") in meant]


def refuse_repeated(annotations: Iterable[Mapping[str, Any]], name: str) -> None:
    """Refuses annotations with the same id.

    Raises:
        ValueError: with how many there are, and the first.
    """
    repeated = [i for i, n in Counter(a["id"] for a in annotations).items() if n > 1]
    if repeated:
        raise ValueError(
            f"{name}: {len(repeated)} annotation ids occur more than once, first {repeated[0]} (files joined without "
            "numbering them anew?)"
        )


def who_is(annotation: Mapping[str, Any], name: str) -> str:
    """How messages call an annotation."""
    return f"{name}: annotation {annotation.get('id')} (image {annotation.get('image_id')})"


def keypoint_names(category: Mapping[str, Any], name: str) -> list[str]:
    """A category's keypoint names; none where it has none.

    Raises:
        ValueError: no list of texts.
    """
    names = category.get("keypoints") or []
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"{name}: category {category.get('name')!r}: keypoints must be names, got {names!r:.200}")
    return list(names)


def with_good_edges(category: Mapping[str, Any], name: str, remarks: Remarks) -> dict[str, Any]:
    """A category whose `skeleton` can be drawn: pairs of joints counted from 1, or none if one of them is not.

    Edges are for drawing only, so wrong ones are left out; all of them, because where one counts from 0 or names a
    joint that was removed, the others cannot be trusted either.
    """
    K, edges = len(category.get("keypoints") or ()), category.get("skeleton") or []
    if not isinstance(edges, (list, tuple)):
        edges = [edges]
    for edge in edges:
        pair = isinstance(edge, (list, tuple)) and len(edge) == 2 and all(type(joint) is int for joint in edge)
        if not pair or (K and not all(1 <= joint <= K for joint in edge)):
            whose = f"{name}: the skeleton of category {category.get('name')!r} has the edge {edge!r:.80}"
            remark(remarks, f"joints count from 1 to {K}, so no edges are drawn", whose)
            return {**category, "skeleton": []}
    return dict(category)


def check_annotation(
    raw: Mapping[str, Any],
    names: Sequence[str],
    who: str,
    remarks: Remarks,
    *,
    strict: bool = False,
    box_share: float | None = None,
) -> dict[str, Any]:
    """An annotation as pycocotools needs it, checked.

    Args:
        raw: of the file, with ids.
        names: K keypoint names.
        who: the beginning of messages.
        remarks: to add to.
        strict: for training, which takes no visibility outside 0..2.
        box_share: the area is this share of the box, whatever the file says (CrowdPose).

    Returns:
        `id`, `image_id`, `category_id`, `bbox` (4 floats), `area` (float), `iscrowd` (0 or 1), `keypoints` (3K floats,
        unlabelled ones finite), `num_keypoints`.

    Raises:
        ValueError: a value that cannot be used.
    """
    crowd = _flag(raw.get("iscrowd"), f"{who}: iscrowd")
    given = raw.get("num_keypoints")
    given = None if given is None else whole(given, f"{who}: num_keypoints")
    points = _keypoints(raw, given, names, who, remarks, strict)
    labelled = int((points[:, 2] > 0).sum())
    needed = labelled and not crowd
    if given == 0 and needed:
        remark(remarks, "num_keypoints is 0 although joints are labelled: neither learnt from nor scored", who)
    if given and not labelled and not crowd:
        remark(remarks, f"num_keypoints is not 0 although no joint is labelled: {LEFT_OUT}", who)
    box = [0.0] * 4 if raw.get("bbox") is None and not needed else numbers(raw.get("bbox"), 4, f"{who}: bbox").tolist()
    area = raw.get("area")
    if box_share is not None:
        area = abs(box[2] * box[3]) * box_share
    elif area is None:
        area = abs(box[2] * box[3])
        if needed:
            remark(remarks, "has no 'area', so the box's is taken, which forgives more than a segment's", who)
    return {
        "id": raw["id"],
        "image_id": raw.get("image_id"),
        "category_id": raw.get("category_id"),
        "bbox": box,
        "area": float(numbers([area], 1, f"{who}: area")[0]),
        "iscrowd": int(crowd),
        "keypoints": points.reshape(-1).tolist(),
        "num_keypoints": labelled if given is None else given,
    }


LEFT_OUT = "left out of training and never cropped, but counted in the score as pycocotools counts it"


def _flag(value: Any, who: str) -> bool:
    return bool(value) if value is None or isinstance(value, bool) else whole(value, who) != 0


def _keypoints(
    raw: Mapping[str, Any], given: int | None, names: Sequence[str], who: str, remarks: Remarks, strict: bool
) -> np.ndarray:
    """Keypoints `[K, 3]`, float64; the visibility as the file has it."""
    K, values = len(names), raw.get("keypoints")
    if not given and (values is None or (isinstance(values, list) and not values)):
        return np.zeros((K, 3))
    if not isinstance(values, (list, tuple)) or len(values) != 3 * K:
        count = len(values) if isinstance(values, (list, tuple)) else "no"
        raise ValueError(f"{who} has {count} keypoint values; {K} keypoints need {3 * K} (x, y, visibility each)")
    array = vector(values)
    if array is None:
        raise ValueError(f"{who}: keypoints must be numbers, got {values!r:.80}")
    points = array.reshape(K, 3)
    seen = points[:, 2]
    fine = np.abs(points) <= LARGEST
    bad = ~fine[:, 2] | ((seen > 0) & ~fine.all(1))
    if bad.any():
        joint = names[int(np.flatnonzero(bad)[0])]
        raise ValueError(
            f"{who}: keypoint {joint!r} is labelled but NaN or infinite; label a missing keypoint as 0, 0, 0"
        )
    points[~fine] = 0.0  # of joints that are not labelled
    if not set(seen.tolist()) <= {0, 1, 2}:
        odd = seen[~np.isin(seen, (0, 1, 2))]
        outside = odd[(odd < 0) | (odd > 2)]
        if strict and len(outside):
            raise ValueError(
                f"{who}: visibility must be 0 (unlabelled), 1 (occluded) or 2 (visible), or a confidence between, got "
                f"{outside[0]:g}"
            )
        if strict:
            whose = f"{who} has the visibility {odd[0]:g}"
            remark(remarks, "taken for a confidence: above 0 is labelled", whose)
    return points


def upright(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box (x, y, width, height) that was drawn from right to left or from the bottom, turned round."""
    x, y, w, h = box
    return min(x, x + w), min(y, y + h), abs(w), abs(h)


_BEYOND = 1.02  # a box that ends farther to the right than this many image widths was not drawn so by hand
_NEARLY_ALL = 0.9
_FEW = 3  # boxes from which nothing can be told without keypoints


def looks_like_corners(boxes: np.ndarray, sizes: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Which boxes are (left, top, right, bottom) by the look of them, although (x, y, width, height) is meant.

    Seldom can a single box tell. So none is, unless every box (nearly) could be corners that hold the person's
    keypoints, and some would reach far beyond their image as (x, y, width, height).

    Args:
        boxes: `[N, 4]`.
        sizes: `[N, 2]`, height and width of each box's image.
        keypoints: `[N, K, 3]`.

    Returns:
        bool `[N]`: the boxes that give it away.
    """
    x, y, w, h = boxes.astype(float).T
    height, width = sizes.astype(float).T
    slack = 0.1 * np.stack((w - x, h - y), 1).clip(1)
    low, high = boxes[:, None, :2] - slack[:, None], boxes[:, None, 2:] + slack[:, None]
    labelled = keypoints[..., 2] > 0
    inside = ((keypoints[..., :2] >= low) & (keypoints[..., :2] <= high)).all(-1) | ~labelled
    possible = (w > x) & (h > y) & (w <= width + 1) & (h <= height + 1) & (inside.mean(1) >= _NEARLY_ALL)
    beyond = (x + w > _BEYOND * width) | (y + h > _BEYOND * height)
    if not len(boxes) or possible.mean() < _NEARLY_ALL:
        return np.zeros(len(boxes), bool)
    return beyond & possible


def tell_corners(boxes: np.ndarray, sizes: np.ndarray, keypoints: np.ndarray, name: str) -> None:
    """Warns where boxes of a file look like corners; a detector's come with keypoints that are not labelled."""
    odd = looks_like_corners(boxes, sizes, keypoints)
    if odd.any() and (len(boxes) >= _FEW or (keypoints[..., 2] > 0).any()):
        warnings.warn(
            f"{name}: {int(odd.sum())} of {len(odd)} boxes reach out of their images as x, y, width, height, and as "
            "corners x1, y1, x2, y2 they do not: if they are corners, write widths and heights",
            stacklevel=3,
        )
