"""Pose networks, their weights and their cost."""

from posekd.models.base import ModelConfig, PoseModel, config_to_dict, model_card
from posekd.models.profile import Profile, format_profile, profile_model
from posekd.models.registry import create_model, create_model_from_card, list_models, load_model
from posekd.models.weights import init_backbone, load_weights, save_weights
from posekd.models.zoo import paradigm_name

__all__ = [
    "ModelConfig",
    "PoseModel",
    "Profile",
    "config_to_dict",
    "create_model",
    "create_model_from_card",
    "format_profile",
    "init_backbone",
    "list_models",
    "load_model",
    "load_weights",
    "model_card",
    "paradigm_name",
    "profile_model",
    "save_weights",
]
