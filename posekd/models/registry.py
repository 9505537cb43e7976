"""Models by name: `create_model("elpn_v1", num_keypoints=20, width=24)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from posekd.files import nearest
from posekd.models.base import ModelConfig, PoseModel
from posekd.models.weights import card_keypoints, load_weights, read_card
from posekd.models.zoo import MODELS, build, family_config
from posekd.structures import InputSpec


def list_models() -> list[str]:
    """The names that `create_model` knows, sorted."""
    return sorted(MODELS)


def create_model(
    name: str, num_keypoints: int = 17, weights: str | os.PathLike[str] | None = None, **overrides: Any
) -> PoseModel:
    """Builds a model in training mode.

    Args:
        name: one of `list_models()`.
        num_keypoints: K, the number of keypoints to predict.
        weights: a checkpoint to load strictly (see `load_weights`); fresh weights without.
        overrides: settings of the model's configuration by name, as `width=8, modules=(1, 1, 1)`; `size`
            is short for the `size` of its `spec`, and `spec` may be a mapping of the fields to change. (`weights_key`
            says under which entry of the file the weights are, where that is none of the usual names.)

    Raises:
        ValueError: unknown name or setting (the nearest valid one is named), an invalid value, or a
            checkpoint that does not fit.
        FileNotFoundError: no checkpoint at `weights`.

    Examples:
        >>> import torch
        >>> from posekd.models import create_model
        >>> model = create_model("elpn_v1", num_keypoints=17, size=(128, 96)).eval()
        >>> heatmaps = model(torch.rand(1, 3, 128, 96))
        >>> heatmaps.shape
        torch.Size([1, 17, 32, 24])
    """
    key = overrides.pop("weights_key", None)
    model = build(name, override(_config(name), overrides, name), num_keypoints)
    if weights is not None:
        load_weights(model, weights, key)
    return model


def settings_of(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a model's configuration by name, with some changed.

    Raises:
        ValueError: as `create_model`.
    """
    config = override(_config(name), overrides or {}, name)
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _config(name: str) -> ModelConfig:
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}{nearest(name, MODELS)}")
    return MODELS[name]


def override(config: ModelConfig, overrides: Mapping[str, Any], name: str = "this model") -> Any:
    """A copy of `config` with some settings changed; lists, as JSON and YAML have them, become tuples.

    Raises:
        ValueError: an unknown setting or an invalid value.
    """
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        if key not in known and key != "size":
            raise ValueError(f"{name} has no setting {key!r}{nearest(key, [*known, 'size'])}")
        if key not in ("spec", "size"):
            changes[key] = _checked(key, value, getattr(config, key))
    if "spec" in overrides or "size" in overrides:
        changes["spec"] = _spec(config.spec, overrides)
    return replace(config, **changes)  # type: ignore[type-var]


def _checked(key: str, value: Any, old: Any) -> Any:
    """Checks that `value` has a type that fits the setting, whose present value is `old`."""
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(old, (bool, str)) and not isinstance(value, type(old)):
        raise ValueError(f"{key} must be of type {type(old).__name__}, got {value!r}")
    if isinstance(old, tuple) != isinstance(value, tuple) and old is not None and value is not None:
        raise ValueError(f"{key} must be {'a tuple' if isinstance(old, tuple) else 'one number'}, got {value!r}")
    return value


def _spec(spec: InputSpec, overrides: Mapping[str, Any]) -> InputSpec:
    changes: Any = overrides.get("spec", {})
    if isinstance(changes, InputSpec):
        spec, changes = changes, {}
    known = [f.name for f in fields(InputSpec)]
    for key in changes:
        if key not in known:
            raise ValueError(f"an input spec has no field {key!r}{nearest(key, known)}")
    changes = {**changes, **({"size": overrides["size"]} if "size" in overrides else {})}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    new: InputSpec = replace(spec, **changes)
    if not isinstance(new.size, tuple) or len(new.size) != 2 or not all(isinstance(side, int) for side in new.size):
        raise ValueError(f"size is (height, width) in whole pixels, got {new.size!r}")
    return new


def create_model_from_card(card: Mapping[str, Any], weights: str | os.PathLike[str] | None = None) -> PoseModel:
    """Builds the model that a card describes (see `model_card`), whether or not its name is still known.

    Args:
        card: a model card, or a checkpoint's card with the model card under "model".
        weights: a checkpoint to load strictly.

    Raises:
        ValueError: the card lacks an entry, or holds one that is unknown here.
    """
    names = card_keypoints(card)
    card = card.get("model", card)
    missing = [key for key in ("name", "family", "num_keypoints", "config") if key not in card]
    if missing:
        raise ValueError(f"not a model card: it has no {', '.join(missing)}; it has {', '.join(card) or 'nothing'}")
    config = override(family_config(card["family"]), card["config"], f"family {card['family']!r}")
    model = build(card["name"], config, card["num_keypoints"])
    if weights is not None:
        load_weights(model, weights)
    model.keypoint_names = names
    return model


def load_model(path: str | os.PathLike[str]) -> PoseModel:
    """Builds and loads a model that `save_weights` wrote, from its card and weights, in eval mode.

    Args:
        path: the `.safetensors` file; its card is beside it, with the suffix `.json`.

    Raises:
        FileNotFoundError: weights or card are missing.
        ValueError: either cannot be read, or they do not fit each other.
    """
    card = read_card(path)
    if card is None:
        raise FileNotFoundError(
            f"{path} has no card (.json) beside it; create the model by name and pass the file as `weights`"
        )
    return create_model_from_card(card, path).eval()
