"""Old names of recipe keys: old recipes, cards and command lines are still read, with a note about the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

RENAMED: dict[str, str] = {
    "eval": "inference",
    "inference.flip": "inference.flip_test",
    "inference.shift": "inference.shift_heatmaps",
    "inference.joint_threshold": "inference.keypoint_threshold",
    "inference.nms_threshold": "inference.oks_threshold",
    "inference.project": "inference.project_to_input",
    "inference.border": "inference.search_border",
    "method.unlabelled": "method.unlabelled_weight",
    "method.tag_kind": "method.push_form",
    "schedule.factor": "schedule.gamma",
    "optim.smoothing": "optim.alpha",
}
"""Old dotted key -> the one that took its place; a group's own name comes before its keys'."""


def new_name(key: str) -> str:
    """The present name of a dotted key."""
    group, dot, rest = key.partition(".")
    key = RENAMED.get(group, group) + dot + rest
    return RENAMED.get(key, key)


def modernise(values: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """A recipe's values under their present names, with a warning for each old name.

    Args:
        values: as YAML gives them.
        quiet: do not warn (for cards, which are not edited by hand).

    Raises:
        ValueError: a key under both its names.
    """
    result: dict[str, Any] = {}
    for group, content in values.items():
        place = _put(result, group, quiet)
        if not isinstance(content, Mapping):
            result[place] = content
            continue
        inner: dict[str, Any] = {}
        for key, value in content.items():
            renamed = new_name(f"{place}.{key}").partition(".")[2]
            if renamed in inner or (renamed != key and renamed in content):
                raise ValueError(f"{place}.{key} is called {place}.{renamed} now, and both are given: keep the latter")
            if renamed != key and not quiet:
                _say(f"{group}.{key}", f"{place}.{renamed}")
            inner[renamed] = value
        result[place] = inner
    return result


def _put(result: Mapping[str, Any], group: str, quiet: bool) -> str:
    place = RENAMED.get(group, group)
    if place in result:
        raise ValueError(f"{group} is called {place} now, and both are given: keep {place}")
    if place != group and not quiet:
        _say(group, place)
    return place


def _say(old: str, new: str) -> None:
    warnings.warn(f"the recipe key {old} is called {new} now; the old name still works", stacklevel=5)
