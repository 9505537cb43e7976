"""COCO-WholeBody's five lists of keypoints as one set of 133, and back.

Its files are COCO's with four more lists beside `keypoints` (jin-s13/COCO-WholeBody, data_format.md). Joined they are
an ordinary file of 133 keypoints, which is read, learnt from and scored as any other. `num_keypoints`, which counts
the body alone, is left out: the official evaluation does not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posekd.coco_rules import who_is
from posekd.skeleton import COCO, COCO_WHOLEBODY, FACE, FOOT, LEFT_HAND, RIGHT_HAND

LISTS = {
    "keypoints": slice(0, FOOT),
    "foot_kpts": slice(FOOT, FACE),
    "face_kpts": slice(FACE, LEFT_HAND),
    "lefthand_kpts": slice(LEFT_HAND, RIGHT_HAND),
    "righthand_kpts": slice(RIGHT_HAND, COCO_WHOLEBODY.num_keypoints),
}
"""Name of each list -> the keypoints of `COCO_WHOLEBODY` that it holds, x, y and visibility each."""
PARTS = LISTS.keys() - {"keypoints"}
"""The lists beside `keypoints`."""
_CATEGORY = {"keypoints": list(COCO_WHOLEBODY.keypoints), "skeleton": [[a + 1, b + 1] for a, b in COCO_WHOLEBODY.edges]}


def is_whole_body(names: Sequence[str]) -> bool:
    """Whether keypoints are COCO-WholeBody's 133, in its order."""
    return tuple(names) == COCO_WHOLEBODY.keypoints


def join_labels(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A label file with one list of 133 keypoints for each person; nothing else is looked at.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: no category has COCO's 17 keypoints, no annotation has any of the other lists, or one has a list of
            another length.
    """
    categories = [_joined_category(category) for category in content.get("categories", ())]
    if not any(isinstance(c, Mapping) and c.get("keypoints") == _CATEGORY["keypoints"] for c in categories):
        raise ValueError(f"{name}: whole_body joins lists to COCO's 17 keypoints, and none of its categories has those")
    joined = {**content, "categories": categories}
    annotations = content.get("annotations")
    if isinstance(annotations, (list, tuple)):
        joined["annotations"] = [_joined(a, who_is(a, name)) if isinstance(a, Mapping) else a for a in annotations]
        if annotations and not any(isinstance(a, Mapping) and not PARTS.isdisjoint(a) for a in annotations):
            raise ValueError(
                f"{name}: no annotation has any of {', '.join(sorted(PARTS))}: this is not a COCO-WholeBody file, so "
                "leave whole_body out"
            )
    return joined


def _joined_category(category: Any) -> Any:
    bare = isinstance(category, Mapping) and category.get("name") == "person" and not category.get("keypoints")
    if bare or (isinstance(category, Mapping) and category.get("keypoints") == list(COCO.keypoints)):
        return {**category, **_CATEGORY}
    return category


def _joined(annotation: Mapping[str, Any], who: str) -> dict[str, Any]:
    others = {key: value for key, value in annotation.items() if key not in LISTS and key != "num_keypoints"}
    if all(annotation.get(key) is None for key in LISTS):  # a person with a box only
        return {**others, "num_keypoints": annotation.get("num_keypoints")}
    return {**others, "keypoints": _concatenated(annotation, who)}


def _concatenated(entry: Mapping[str, Any], who: str) -> list[Any]:
    """The five lists one after the other; a list that is not there is unlabelled."""
    values: list[Any] = []
    for key, part in LISTS.items():
        count = 3 * (part.stop - part.start)
        found = entry.get(key)
        if found is None or (isinstance(found, (list, tuple)) and not found):
            found = [0] * count
        if not isinstance(found, (list, tuple)) or len(found) != count:
            got = len(found) if isinstance(found, (list, tuple)) else "no"
            raise ValueError(f"{who} has {got} values in {key!r}; whole_body needs {count} (x, y, visibility each)")
        values += found
    return values


def join_result(entry: Mapping[str, Any], who: str) -> dict[str, Any]:
    """A result in the official form, with one list of 133 keypoints; one that has none of the other lists stays.

    Raises:
        ValueError: a list of another length.
    """
    if PARTS.isdisjoint(entry):
        return dict(entry)
    return {**{k: v for k, v in entry.items() if k not in LISTS}, "keypoints": _concatenated(entry, who)}


def split_result(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A result of 133 keypoints in the official form, five lists."""
    return {**entry, **{key: entry["keypoints"][3 * part.start : 3 * part.stop] for key, part in LISTS.items()}}
