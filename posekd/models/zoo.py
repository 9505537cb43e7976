"""The named configurations, and which class builds which kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from posekd.files import nearest
from posekd.models import deeppose, distilpose, hourglass, pyranet, simple, simple_tags, tokenpose
from posekd.models.base import ModelConfig, PoseModel
from posekd.models.elpn import ELPN_V1, ELPN_V2, TABLE_4, TABLE_5
from posekd.models.higherhrnet import (
    HIGHERHRNET_W32,
    HIGHERHRNET_W48,
    SMALLERHRNET_1_5M,
    SMALLERHRNET_2_3M,
    SMALLERHRNET_2_84M,
    SMALLERHRNET_2_96M,
    HigherHRNet,
    HigherHRNetConfig,
)
from posekd.models.hrnet import HRNET_W32, HRNET_W48, HRNet, HRNetConfig
from posekd.models.simplebaseline import (
    SIMPLEBASELINE_R50,
    SIMPLEBASELINE_R101,
    SIMPLEBASELINE_R152,
    SimpleBaseline,
    SimpleBaselineConfig,
)

MODELS: dict[str, ModelConfig] = {
    "hrnet_w32": HRNET_W32,
    "hrnet_w48": HRNET_W48,
    "higherhrnet_w32": HIGHERHRNET_W32,
    "higherhrnet_w48": HIGHERHRNET_W48,
    "smallerhrnet_1_5m": SMALLERHRNET_1_5M,
    "smallerhrnet_2_3m": SMALLERHRNET_2_3M,
    "smallerhrnet_2_84m": SMALLERHRNET_2_84M,
    "smallerhrnet_2_96m": SMALLERHRNET_2_96M,
    "simplebaseline_r50": SIMPLEBASELINE_R50,
    "simplebaseline_r101": SIMPLEBASELINE_R101,
    "simplebaseline_r152": SIMPLEBASELINE_R152,
    "elpn_v1": ELPN_V1,
    "elpn_v2": ELPN_V2,
    **TABLE_4,
    **TABLE_5,
    **hourglass.NAMED,
    **pyranet.NAMED,
    **tokenpose.NAMED,
    **simple.NAMED,
    **simple_tags.NAMED,
    **distilpose.NAMED,
    "deeppose_r50": deeppose.DEEPPOSE_R50,
}

_FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    HRNet.family: (HRNetConfig, HRNet),
    HigherHRNet.family: (HigherHRNetConfig, HigherHRNet),
    SimpleBaseline.family: (SimpleBaselineConfig, SimpleBaseline),
    hourglass.Hourglass.family: (hourglass.HourglassConfig, hourglass.Hourglass),
    pyranet.PyraNet.family: (pyranet.PyraNetConfig, pyranet.PyraNet),
    tokenpose.TokenPose.family: (tokenpose.TokenPoseConfig, tokenpose.TokenPose),
    simple.Simple.family: (simple.SimpleConfig, simple.Simple),
    simple_tags.SimpleTags.family: (simple_tags.SimpleTagsConfig, simple_tags.SimpleTags),
    distilpose.DistilPose.family: (distilpose.DistilPoseConfig, distilpose.DistilPose),
    deeppose.DeepPose.family: (deeppose.DeepPoseConfig, deeppose.DeepPose),
}


def build(name: str, config: ModelConfig, num_keypoints: int) -> PoseModel:
    """The network of a configuration, with fresh weights; its class follows from the configuration's."""
    if isinstance(num_keypoints, bool) or not isinstance(num_keypoints, int) or num_keypoints < 1:
        raise ValueError(f"num_keypoints must be a positive integer, got {num_keypoints!r}")
    for config_class, model_class in _FAMILIES.values():
        if type(config) is config_class:  # a family's configuration may extend another's
            return _in_float32(lambda: model_class(config, num_keypoints, name))  # noqa: B023 (called at once)
    raise TypeError(f"no model is built from a {type(config).__name__}")


def _in_float32(make: Callable[[], PoseModel]) -> PoseModel:
    """What `make` gives, in float32 whatever torch's default is: weights, images and teachers are."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return make()
    finally:
        torch.set_default_dtype(default)


def paradigm_name(name: str) -> str:
    """The paradigm of the model of this name, or of this family; `top_down` for an unknown name."""
    config = type(MODELS[name]) if name in MODELS else _FAMILIES.get(name, (None,))[0]
    found = (model.paradigm for kind, model in _FAMILIES.values() if kind is config)
    return next(found, PoseModel.paradigm)


def family_config(family: str) -> ModelConfig:
    """The default configuration of a family named in a card.

    Raises:
        ValueError: no such family.
    """
    if family not in _FAMILIES:
        raise ValueError(f"unknown model family {family!r}{nearest(family, _FAMILIES)}")
    return _FAMILIES[family][0]()
