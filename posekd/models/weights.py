"""Reading and writing weights: posekd's (safetensors with a JSON card beside it) and the official `.pth` files.

A `.pth` is a pickle, which can run code; it is read with `weights_only=True`, never otherwise.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posekd.files import replacing
from posekd.models.base import PoseModel, model_card
from posekd.models.identify import describe_mismatch, few

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

# Where training checkpoints keep the weights: HRNet's trainer, HRNet's best model, many others.
_WRAPPERS = (
    "state_dict", "best_state_dict", "model", "model_state_dict", "network", "net", "student", "params", "weights",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
)  # fmt: skip
# Left on every key by DataParallel, by HigherHRNet's half-precision Sequential(cast, net, cast), by torch.compile, and
# by princeton-vl's trainer.
_PREFIXES = ("module.", "1.", "_orig_mod.", "model.", "net.", "network.", "student.")
# MMPose puts the official names of HRNet, HigherHRNet and SimpleBaseline behind these (0.x; 1.x).
_BACKBONE = "backbone."
_MMPOSE = (_BACKBONE, "keypoint_head.", "head.")
# Classification heads of the ImageNet checkpoints of HRNet and ResNet.
_CLASSIFIER_PREFIXES = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.", "fc.")
_COUNTER = ".num_batches_tracked"


def save_weights(model: PoseModel, path: PathLike, card: Mapping[str, Any] | None = None) -> None:
    """Writes weights to `path` and a card beside it, each whole or not at all.

    The card is a JSON object with what builds the model under "model" (see `model_card`), and the entries
    of `card` beside that.

    Args:
        model: the model, on any device, in any memory format.
        path: a `.safetensors` file; its folder is created if it does not exist.
        card: more facts: skeleton, codec, metrics, teacher, recipe.

    Raises:
        ValueError: another suffix, or a card with its own "model" entry.
        TypeError: the card holds a value that JSON cannot represent.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are written as .safetensors, got {path.name!r}")
    if card and "model" in card:
        raise ValueError('the card entry "model" is written by save_weights itself; use another name')
    text = json.dumps({"model": model_card(model), **(card or {})}, indent=2) + "\n"
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    # both are written before either is put in its place; the weights first
    with replacing(path.with_suffix(".json")) as new_card, replacing(path) as new_weights:
        save_file(tensors, new_weights, metadata={"format": "pt"})
        new_card.write_text(text, encoding="utf-8")


def find_checkpoint(name: PathLike) -> Path | None:
    """The checkpoint that a word of a command line means: a `.safetensors` file, or a run's best one, else its last.

    Args:
        name: a file, a folder, or a model's name.

    Returns:
        The path of a `.safetensors` file; None for other words, which may be a model's name.

    Raises:
        FileNotFoundError: a folder without a checkpoint, or no such file.
    """
    path = Path(name)
    if path.is_dir():
        found = [path / f"{which}.safetensors" for which in ("best", "last")]
        file = next((file for file in found if file.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{name} holds no best.safetensors and no last.safetensors: is it a run's?")
        return file
    if path.suffix != ".safetensors":
        return None
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return path


def read_card(path: PathLike) -> dict[str, Any] | None:
    """The card beside a weights file, or None where there is none.

    Raises:
        ValueError: the card is not a JSON object.
    """
    card = Path(path).with_suffix(".json")
    if not card.is_file():
        return None
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{card} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{card} is not a card: it holds a {type(content).__name__}, not an object")
    return content


def read_state_dict(path: PathLike, key: str | None = None) -> StateDict:
    """The bare state dict in a file: wrappers opened, prefixes stripped, half precision cast to float32.

    Args:
        path: `.safetensors`, or anything that `torch.save` wrote.
        key: under which entry of the file the weights are, dotted for entries of entries; the usual ones are tried
            without.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds code, is no state dict, or has no such entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    content = _unwrapped(content, path) if key is None else _entry(content, key, path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no weights, but {_describe(content)}")
    alien = [k for k, v in content.items() if not isinstance(v, Tensor)]
    if alien:
        within = [name for name, value in content.items() if isinstance(value, Mapping)]
        hint = f"; name the entry that holds the weights (weights_key), e.g. {within[0]!r}" if within else ""
        raise ValueError(f"{path} holds no state dict: entry {alien[0]!r} is {_describe(content[alien[0]])}{hint}")
    return {k: v.float() if v.dtype in (torch.half, torch.bfloat16) else v for k, v in _strip(dict(content)).items()}


def _unwrapped(content: Any, path: Path) -> Any:
    """What a training checkpoint keeps under one of the usual names; anything else as it is."""
    key = next((k for k in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(k), Mapping)), None)
    return content if key is None else content[key]


def _entry(content: Any, key: str, path: Path) -> Any:
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise ValueError(f"{path} has no entry {part!r} (weights_key {key!r}): there is {_describe(content)}")
        content = content[part]
    return content


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error})") from None


def _read_pickle(path: Path) -> Any:
    try:
        # HRNet's trainer stores its AP as a NumPy scalar, which by itself would be refused.
        with torch.serialization.safe_globals(_numpy_scalar_globals()):
            return torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in a dozen ways: KeyError, AssertionError, ...
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise ValueError(
                f"{path} was refused: it holds more than tensors and plain values, and reading it could run "
                f"code ({code[1]}). If it is yours, save its state_dict() alone."
            ) from None
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or was not written by torch.save ({reason})") from None


def _numpy_scalar_globals() -> list[Any]:
    """What it takes to read NumPy floats, under the module names of NumPy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [np.dtype, type(np.dtype("f8")), type(np.dtype("f4"))]
    if torch.__version__ < "2.6":  # it accepts no alternative names
        return [scalar, *dtypes]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + dtypes


def _strip(state: StateDict) -> StateDict:
    """Removes the prefixes that wrappers leave, as long as every key has one of them."""
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _in_names_of(model: PoseModel, state: StateDict) -> StateDict:
    """Other trainers' names as the model's; its own may be MMPose's (TokenPose's, DistilPose's and DeepPose's are)."""
    prefixed = any(k.startswith(_BACKBONE) for k in model.state_dict())
    return model.own_names(state if prefixed else without_mmpose(state))


def without_mmpose(state: StateDict) -> StateDict:
    """Removes MMPose's prefixes, as long as every key has one of them."""
    if any(k.startswith(_BACKBONE) for k in state) and all(k.startswith(_MMPOSE) for k in state):
        return {k.split(".", 1)[1]: v for k, v in state.items()}
    return state


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:5]))
        return f"a dictionary with {keys or 'nothing'}"
    return f"of type {type(value).__name__}"


def load_weights(model: PoseModel, path: PathLike, key: str | None = None) -> dict[str, Any]:
    """Loads a checkpoint into `model`: every key must be there, no other, each of the right shape.

    Takes posekd's safetensors, official `.pth` files and training checkpoints (see `read_state_dict`). Batch
    counters of norms may be missing, as they are in files older than PyTorch 0.4.1.

    Args:
        model: the model to fill, on any device.
        path: the file.
        key: see `read_state_dict`.

    Returns:
        The card beside the file, or `{}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file cannot be read, or does not fit; the message names some of the keys, and the
            model that the file seems to be for.
    """
    state = _in_names_of(model, read_state_dict(path, key))
    card = read_card(path) or {} if Path(path).suffix == ".safetensors" else {}
    own = model.state_dict()
    counters = {k: v for k, v in own.items() if k.removesuffix(_COUNTER) + ".running_mean" in state}
    state = {**counters, **state}
    if _shapes(state) != _shapes(own):
        raise ValueError(f"{path} does not fit {model.name}: " + describe_mismatch(model, state, card.get("model")))
    model.load_state_dict(state)
    model.keypoint_names = card_keypoints(card)
    return card


def card_keypoints(card: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """Names of the keypoints that a checkpoint's card lists; None where it lists none."""
    skeleton = (card or {}).get("skeleton")
    return tuple(skeleton["keypoints"]) if isinstance(skeleton, Mapping) and skeleton.get("keypoints") else None


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in state.items()}


@dataclass(frozen=True)
class InitReport:
    """What `init_backbone` did.

    Attributes:
        loaded: number of tensors copied into the model.
        fresh: the model's tensors that keep their initialisation (the head, at least).
        unused: the checkpoint's tensors that the model has no place for (the classifier, at least).
    """

    loaded: int
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.loaded} tensors loaded, {len(self.fresh)} left as they were, {len(self.unused)} unused"


def init_backbone(model: PoseModel, path: PathLike, key: str | None = None) -> InitReport:
    """Starts the backbone from an ImageNet checkpoint (HRNet's, or a torchvision-style ResNet) or another model's.

    The model's head and the checkpoint's classifier are skipped by name; all else that both have is copied. So
    DistilPose-L can start from its teacher.

    Args:
        model: the model to start.
        path: a file that `read_state_dict` reads.
        key: under which entry of the file the weights are, where that is none of the usual names.

    Returns:
        What was loaded and what was not, to be printed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, a backbone of another width or kind, or nothing in common.
    """
    own = {k: v for k, v in model.state_dict().items() if not k.startswith(model.head_prefixes)}
    state = _in_names_of(model, read_state_dict(path, key))
    if all(k.startswith(_BACKBONE) for k in own) and not any(k.startswith(_BACKBONE) for k in state):
        state = {k if k.startswith(_CLASSIFIER_PREFIXES) else _BACKBONE + k: v for k, v in state.items()}
    common = {k: v for k, v in state.items() if k in own and not k.startswith(_CLASSIFIER_PREFIXES)}
    wrong = [k for k, v in common.items() if v.shape != own[k].shape]
    if wrong or not common:
        reason = few("tensors of another shape", wrong) or few("tensors and none of the model's", list(state))
        raise ValueError(f"{path} cannot start the backbone of {model.name}: it has {reason}")
    model.load_state_dict(common, strict=False)
    fresh = tuple(k for k in model.state_dict() if k not in common and not k.endswith(_COUNTER))
    return InitReport(len(common), fresh, tuple(k for k in state if k not in common))
