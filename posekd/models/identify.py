"""Explains why a checkpoint does not fit a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from posekd.models.base import PoseModel, model_card
from posekd.models.zoo import MODELS, build

_SHOWN = 4
_HEADS = ("final_layer.weight", "final_layers.1.weight")  # one row per keypoint


def describe_mismatch(model: PoseModel, state: Mapping[str, Tensor], card: Mapping[str, Any] | None) -> str:
    """Says what is missing, unexpected or of another shape, and what the file seems to be.

    Args:
        model: the model that was to be filled.
        state: the checkpoint.
        card: the model card beside it, if any.
    """
    own = model.state_dict()
    differ = [
        f"{k} (file {tuple(state[k].shape)}, model {tuple(own[k].shape)})"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    parts = [
        few("missing", [k for k in own if k not in state]),
        few("unexpected", [k for k in state if k not in own]),
        few("other shape", differ),
    ]
    guess = _card_says(model, card) if card else identify(state)
    return "; ".join(filter(None, parts)) + (f". {guess}" if guess else "")


def few(what: str, keys: Collection[str]) -> str:
    """`3 missing: a, b, c`, with the first few keys; empty for none."""
    if not keys:
        return ""
    more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} {what}: {', '.join(list(keys)[:_SHOWN])}{more}"


def _card_says(model: PoseModel, card: Mapping[str, Any]) -> str:
    """How the card's model differs from `model`."""
    mine = model_card(model)
    text = f"Its card says {card.get('name')!r} with {card.get('num_keypoints')} keypoints"
    theirs = card.get("config", {})
    differ = [k for k, v in mine["config"].items() if k in theirs and theirs[k] != v]
    if card.get("family") != mine["family"] or not differ:
        return text
    return f"{text} and " + ", ".join(f"{k}={theirs[k]} (here {mine['config'][k]})" for k in differ)


def identify(state: Mapping[str, Tensor]) -> str:
    """The model that a state dict seems to be for, as a sentence; empty if it cannot be told."""
    if "classifier.weight" in state or "fc.weight" in state:
        return "It looks like an ImageNet classifier: use init_backbone to start a backbone from it"
    if any(key.startswith("hourglass_modules.") for key in state):
        return (
            "These are names of MMPose's Hourglass, which is another network (CornerNet's, of basic blocks) than the "
            "stacked Hourglass of Newell et al. here"
        )
    if "score.0.weight" in state and "layer1.0.bn1.weight" in state:
        return _describe_hourglass(state)
    head = next((head for head in _HEADS if head in state), None)
    if head is None or not state[head].ndim:
        return ""
    shapes, keypoints = {k: v.shape for k, v in state.items()}, state[head].shape[0]
    for name in MODELS:
        if _shapes(name, keypoints) == shapes:
            return f"It looks like {name!r} with {keypoints} keypoints"
    return ""


def _describe_hourglass(state: Mapping[str, Tensor]) -> str:
    """Which stacked Hourglass a state dict is for."""
    stages = sum(key.startswith("score.") and key.endswith(".weight") for key in state)
    keypoints, width = state["score.0.weight"].shape[:2]
    # where both stems agree, either reads it
    stem = "fpd" if state["layer2.0.conv3.weight"].shape[0] == width else "paper"
    return f"It looks like 'hourglass' with stages={stages}, width={width}, stem='{stem}' and {keypoints} keypoints"


@cache
def _shapes(name: str, num_keypoints: int) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = build(name, MODELS[name], num_keypoints)
    return {k: v.shape for k, v in model.state_dict().items()}
