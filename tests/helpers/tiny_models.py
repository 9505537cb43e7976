"""Networks small enough to run in a test."""

from __future__ import annotations

import torch

from posekd.models import PoseModel, create_model

TINY_HRNET = {
    "width": 8,
    "modules": (1, 1, 1),
    "blocks": 1,
    "stage1_blocks": 1,
    "stem_width": 8,
    "stage1_width": 4,
}
TINY_HOURGLASS = {"stages": 2, "width": 16}
TINY_RESNET = {"width": 8, "blocks": (1, 1, 1, 1), "deconv_width": 8}

TINY = {"simplebaseline": TINY_RESNET, "hourglass": TINY_HOURGLASS, "pyranet": TINY_HOURGLASS}


def tiny_model(name: str, num_keypoints: int = 5, **overrides) -> PoseModel:
    """A tiny model of a family in evaluation mode, every weight and statistic random."""
    base = next((tiny for start, tiny in TINY.items() if name.startswith(start)), TINY_HRNET)
    torch.manual_seed(0)
    model = create_model(name, num_keypoints, **{"size": (64, 64), **base, **overrides}).eval()
    randomise(model)
    return model


def randomise(model: torch.nn.Module) -> None:
    """Gives weights and statistics ordinary sizes, so that every part of the network shows in its output."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
            elif key.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.1)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
