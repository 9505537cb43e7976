"""Checkpoints: one safetensors file whose header carries the rest as JSON. Nothing is pickled.

A state is a tree of dicts, lists and tuples over tensors and plain values, e.g. `optimizer.state_dict()`.
`pack` splits it into tensors and JSON, `unpack` puts it together again, exactly. A file is written beside
its place and renamed onto it, so a kill at any moment leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from posekd.files import replacing

HEADER = "posekd_state"
_PATTERN = re.compile(r"step_(\d{9})\.safetensors")


def pack(tree: Any, path: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Splits a tree into `{path: tensor}` and a JSON value that says where each tensor belongs.

    Raises:
        TypeError: a leaf that is neither a tensor nor a JSON value.
    """
    if isinstance(tree, Tensor):
        return {path: tree}, {"$tensor": path}
    if isinstance(tree, (dict, list, tuple)):
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        tensors: dict[str, Tensor] = {}
        values = []
        for key in keys:
            below, value = pack(tree[key], f"{path}.{key}")
            tensors.update(below)
            values.append(value)
        if isinstance(tree, dict):
            # JSON keys are strings, an optimiser's are integers: dicts become lists of pairs
            return tensors, {"$dict": [[key, value] for key, value in zip(keys, values, strict=True)]}
        return tensors, {"$list": values} if isinstance(tree, list) else {"$tuple": values}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {}, tree
    raise TypeError(f"{path}: a {type(tree).__name__} cannot be saved in a checkpoint")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$dict":
        return {key: unpack(below, tensors) for key, below in content}
    values = [unpack(below, tensors) for below in content]
    return values if kind == "$list" else tuple(values)


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, and waits until the disk has it.

    Raises:
        OSError: it cannot be written; the half-written file is removed and an older `path` stays.
    """
    # tensors may share memory (tied weights); the file holds a copy of each
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        with replacing(path, sync=True) as partial:
            save_file(own, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def save_state(path: Path, state: dict[str, Any]) -> Path:
    """Saves a state tree atomically and returns its path."""
    tensors, facts = pack(state)
    write_atomically(path, tensors, {HEADER: json.dumps(facts)})
    return path


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or it is not a training checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is damaged or not a safetensors file ({error})") from error
    if facts is None:
        raise ValueError(f"{path} holds weights only, not the state of a training run: nothing to resume from")
    state = unpack(json.loads(facts), tensors)
    assert isinstance(state, dict)
    return state


def checkpoint_path(folder: Path, step: int) -> Path:
    """File of the state after `step` optimiser steps."""
    return folder / f"step_{step:09d}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _PATTERN.fullmatch(path.name))


def keep_last(folder: Path, count: int) -> None:
    """Deletes all but the last `count` checkpoints, and the temporary files of interrupted saves."""
    for path in (*list_checkpoints(folder)[:-count], *folder.glob(".step_*.partial")):
        path.unlink(missing_ok=True)


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint of a folder; damaged ones are skipped with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, load_state(path)
        except ValueError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=2)
    return None


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's state with each tensor laid out in memory as its parameter (channels_last).

    Its settings stay those that it was made with: torch would put the state's in their place, and a resumed run would
    ignore another weight decay.
    """
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    kept = [{**own, "params": saved["params"]} for saved, own in groups]
    optimizer.load_state_dict({**state, "param_groups": kept})
    for parameter, slots in optimizer.state.items():
        for name, tensor in slots.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
