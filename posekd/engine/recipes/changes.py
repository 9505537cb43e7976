"""What may change when a run goes on: the recipe in its checkpoint, key by key against the new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posekd.renames import modernise

REFUSED: dict[str, str] = {
    "student.name": "the weights are of the other network",
    "student.overrides": "the weights are of the other network",
    "optim.name": "the optimiser's state is of the other kind",
}
"""Keys, or groups of them, that a checkpoint cannot follow -> why."""
FREE = ("student.overrides.size", "student.overrides.spec")
"""Keys of such groups that it can: most weights do not depend on the input; where they do, loading them says so."""
_LATE = "no effect: the checkpoint's weights are used"
EFFECTS: dict[str, str] = {
    "student.weights": _LATE,
    "student.backbone": _LATE,
    "student.weights_key": _LATE,
    "student.backbone_key": _LATE,
    "optim.name": "Adam's averages of the gradient are kept; from now on the weight decay acts the new optimiser's way",
    "loader.batch_size": "steps count on, and from now on each sees as many rows as this",
    "train.accumulate": "the same rows per step, in another number of forward passes",
    "train_data": "from now on batches come from these data",
    "unlabelled_data": "from now on batches come from these data",
    "labels": "from now on batches come from these labels",
    "val_data": "the best score so far stays, although it is of the other data: it decides what best.safetensors is",
    "inference": "the best score so far stays, although it was found the other way",
    "tracking": "the best score so far stays, although people were followed the other way",
    "method": "from now on the loss is this one",
    "teacher": "from now on the loss is of this teacher",
    "seed": "from now on batches and random numbers are others",
}
"""Keys, or groups of them -> what another value does to a run that goes on."""
_ADAM = {"adam", "adamw"}  # the same state; they differ in what weight decay does
_DATA = ("train_data", "val_data", "unlabelled_data")


@dataclass(frozen=True)
class Changes:
    """Differences between two recipes.

    Attributes:
        taken: `key old -> new (what it does)` of what the run goes on with.
        refused: the same, with the reason, of what it cannot.
    """

    taken: tuple[str, ...]
    refused: tuple[str, ...]


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changes:
    """Compares the recipe of a checkpoint with the one to go on by.

    Args:
        old: plain values, under present or former names; keys that did not exist then are taken to have had the new
            value.
        new: plain values, as `recipe_to_dict` gives them.
    """
    before, now = _flat(modernise(old, quiet=True)), _flat(new)
    taken, refused = [], []
    for key in sorted(before.keys() | now.keys()):
        unchanged = before.get(key) == now.get(key) or (key not in before and _is_new(key, old, now))
        if key in ("out", "acknowledged") or unchanged:
            continue
        change = f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        why = None if _within(FREE, key) else _reason(REFUSED, key)
        if key == "train.ema_decay" and None in (before.get(key), now.get(key)):
            why = "one keeps an average and the other does not"
        if key == "optim.name" and {before.get(key), now.get(key)} <= _ADAM:
            why = None
        if why is not None:
            refused.append(f"{change} ({why})")
        else:
            effect = _reason(EFFECTS, key)
            taken.append(f"{change} ({effect})" if effect else change)
    return Changes(tuple(taken), tuple(refused))


def _is_new(key: str, old: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a key came to a group after the checkpoint was written; a group that was chosen by name may differ."""
    group = key.partition(".")[0]
    before = modernise(old, quiet=True).get(group)
    if group in _DATA:
        return isinstance(before, Mapping) and before.get("name") == now.get(f"{group}.name")
    return before is not None and group in ("train", "loader", "optim", "schedule", "inference", "augmentation")


def _reason(table: Mapping[str, str], key: str) -> str | None:
    return next((why for name, why in table.items() if _within((name,), key)), None)


def _within(names: Iterable[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {k: v for key, below in values.items() for k, v in _flat(below, f"{prefix}.{key}".lstrip(".")).items()}
