"""From a recipe's model settings to networks, of a name or of the card beside their weights."""

from __future__ import annotations

from pathlib import Path

from posekd.engine.recipes.recipe import ModelSettings
from posekd.models import PoseModel, create_model, create_model_from_card, init_backbone
from posekd.models.registry import override
from posekd.models.weights import card_keypoints, read_card


def build_model(settings: ModelSettings, num_keypoints: int) -> PoseModel:
    """The network that `settings` describe, with its weights; of a name, or of the card beside the weights.

    Raises:
        FileNotFoundError: neither a name nor a card.
    """
    if not settings.name and settings.weights is not None:
        return _of_card(settings, settings.weights)
    key = {} if settings.weights_key is None else {"weights_key": settings.weights_key}
    model = create_model(settings.name, num_keypoints, weights=settings.weights, **key, **settings.overrides)
    if settings.backbone is not None:
        init_backbone(model, settings.backbone, settings.backbone_key)
    return model


def _of_card(settings: ModelSettings, weights: str) -> PoseModel:
    card = read_card(weights) if Path(weights).suffix == ".safetensors" else None
    if card is None:
        there = "there is no such file" if not Path(weights).is_file() else "it has no card (.json) beside it"
        raise FileNotFoundError(f"{weights} should tell which network the teacher is, and {there}: give teacher.name")
    model = create_model_from_card(card, weights)
    model.config = override(model.config, settings.overrides)
    return model


def names_in_card(settings: ModelSettings) -> tuple[str, ...] | None:
    """Names of a network's keypoints, from the card beside its weights; None where nobody knows."""
    if settings.weights is None or Path(settings.weights).suffix != ".safetensors":
        return None
    return card_keypoints(read_card(settings.weights))
