"""From a checkpoint to a network that is ready to predict: what its card says is what its run did."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from posekd import geometry
from posekd.files import nearest
from posekd.models import PoseModel, create_model, create_model_from_card
from posekd.models.identify import identify
from posekd.models.registry import override
from posekd.models.weights import find_checkpoint, read_card, read_state_dict, without_mmpose
from posekd.paradigms import Paradigm, paradigm_of
from posekd.renames import modernise
from posekd.skeleton import COCO, CROWDPOSE, LSP, MPII, POSETRACK, Skeleton, skeleton_from_facts

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, CROWDPOSE, LSP, MPII, POSETRACK)}
"""Keypoint sets by name, for checkpoints without a card."""


@dataclass(frozen=True)
class Ready:
    """A network, and what prediction needs beside it.

    Attributes:
        model: in eval mode, on the CPU.
        skeleton: its K keypoints.
        settings: its paradigm's settings of inference.
        padding: factor by which crops are larger than boxes.
    """

    model: Any  # a `PoseModel`, or another network with the same attributes
    skeleton: Skeleton
    settings: Any
    padding: float


def find_card(name: str, weights: str | None = None) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint that a folder or file name refers to, and its card; None and None for a model's name.

    Args:
        name: a run's folder, a `.safetensors` file with its card, or a model's name.
        weights: the file of weights that was given beside the name, if any.

    Raises:
        ValueError: a checkpoint with other weights beside it.
        FileNotFoundError: no checkpoint, or none with a card.
    """
    path = find_checkpoint(name)
    if path is None:
        _refuse_files(Path(name))
        return None, None
    if weights is not None:
        raise ValueError(f"{name} has its own weights: give no --weights with it")
    card = read_card(path)
    if card is None:
        raise FileNotFoundError(f"{path} has no card (.json) beside it: give the model's name and --weights {path}")
    return path, card


def _refuse_files(path: Path) -> None:
    """Refuses a checkpoint without a card, which must be told whose it is.

    Raises:
        ValueError: such a file; the message names the model that it seems to be of.
        FileNotFoundError: what looks like a file and is not there.
    """
    if path.is_file():
        guess = identify(without_mmpose(read_state_dict(path)))
        raise ValueError(
            f"{path} does not say which model it is of{f'. {guess}' if guess else ''}. Give the model's name, and the "
            f"file as its weights: NAME --weights {path}"
        )
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"no checkpoint at {path}")


def ready(
    name: str | os.PathLike[str],
    *,
    weights: str | None = None,
    weights_key: str | None = None,
    skeleton: str | None = None,
    size: tuple[int, int] | None = None,
    inference: Mapping[str, Any] | None = None,
    padding: float | None = None,
) -> Ready:
    """Builds a network with its weights, and reads from its card how its run has tested it.

    Args:
        name: a run's folder, a `.safetensors` file with its card, or a model's name with `weights`.
        weights: checkpoint of a model given by name.
        weights_key: entry of that file with the weights, where it has an unusual name.
        skeleton: name of its keypoints (`SKELETONS`), where no card tells them; COCO's without.
        size: height and width of the input in pixels, where it is not the model's own.
        inference: settings of inference that differ from the run's.
        padding: factor by which crops are larger than boxes, where it is not the run's.

    Raises:
        ValueError: arguments that do not go together, or a setting that such a network does not have.
        FileNotFoundError: no checkpoint, or none with a card.
    """
    file, card = find_card(str(name), weights)
    changes = {} if size is None else {"size": tuple(size)}
    if file is None or card is None:
        if weights is None:
            raise ValueError(f"{name} has no weights yet: give --weights FILE, or a .safetensors file as the model")
        points = _named(skeleton or COCO.name)
        key = {} if weights_key is None else {"weights_key": weights_key}
        model = create_model(str(name), points.num_keypoints, weights, **key, **changes)
    else:
        if weights_key is not None:
            raise ValueError(f"{name} has its own weights: give no --weights-key with it")
        model = create_model_from_card(card, file)
        points = _skeleton(card, skeleton, model)
        if changes:
            model.config = override(model.config, changes)
    settings, own_padding = run_settings(card, paradigm_of(model))
    return Ready(
        model.eval(),
        points,
        _changed(settings, inference or {}, paradigm_of(model)),
        own_padding if padding is None else padding,
    )


def load_model(path: str | os.PathLike[str]) -> PoseModel:
    """Builds and loads a model that `posekd train` (or `save_weights`) wrote; `model.predict(images)` finds people.

    Args:
        path: a run's folder, or a `.safetensors` file; its card is beside it, with the suffix `.json`.

    Returns:
        The network in training mode on the CPU. Its `predict` is `posekd.deploy.predict.predict` with the run's
        keypoints, test settings and padding.

    Raises:
        FileNotFoundError: weights or card are missing.
        ValueError: either cannot be read, or they do not fit each other.
    """
    from posekd.deploy.predict import predict

    found = ready(path)
    model = found.model.train()
    given = {"skeleton": found.skeleton, "settings": found.settings, "padding": found.padding}
    object.__setattr__(model, "predict", partial(predict, model, **given))
    return model


def run_settings(card: Mapping[str, Any] | None, paradigm: Paradigm) -> tuple[Any, float]:
    """How a run has tested its network: the settings of inference, and the factor of crops on boxes.

    Args:
        card: of the checkpoint; without one, or without a recipe in it, the defaults.
        paradigm: of the network.

    Raises:
        ValueError: the card's recipe has a setting that is not known here.
    """
    recipe = modernise((card or {}).get("recipe", {}), quiet=True)
    values = dict(recipe.get("inference") or {})
    if values.get("channels_last") is None and "channels_last" in (recipe.get("train") or {}):
        values["channels_last"] = recipe["train"]["channels_last"]
    padding = (recipe.get("loader") or {}).get("padding", geometry.PADDING)
    return _changed(paradigm.inference(), values, paradigm), float(padding)


def _changed(settings: Any, changes: Mapping[str, Any], paradigm: Paradigm) -> Any:
    known = [field.name for field in fields(settings)]
    for key in changes:
        if key not in known:
            raise ValueError(f"a {paradigm.title} network has no setting inference.{key}{nearest(key, known)}")
    return replace(settings, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})


def _named(name: str) -> Skeleton:
    if name not in SKELETONS:
        raise ValueError(f"unknown skeleton {name!r}{nearest(name, SKELETONS)}")
    return SKELETONS[name]


def _skeleton(card: Mapping[str, Any], name: str | None, model: PoseModel) -> Skeleton:
    """The card's keypoints; those that were named, or COCO's, where it has none."""
    facts = card.get("skeleton")
    points = skeleton_from_facts(facts) if facts and name is None else _named(name or COCO.name)
    if points.num_keypoints != model.num_keypoints:
        raise ValueError(
            f"the network has {model.num_keypoints} keypoints, {points.name} has {points.num_keypoints}"
            + ("" if facts else ": its card does not say which they are, so name them (--skeleton)")
        )
    return points
