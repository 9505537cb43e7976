"""A network whose keypoints stand in another order than the data's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posekd.codecs import CODECS, heatmaps
from posekd.names import match
from posekd.structures import InputSpec


class Reordered(nn.Module):
    """Says what a network says, keypoint k being the network's `order[k]`.

    Args:
        model: the network; its attributes `spec`, `paradigm`, `output` and `name`, where it has them, are shown.
        order: indices of the network's keypoints, as many as are wanted.
    """

    order: Tensor

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.output = getattr(model, "output", heatmaps.NAME)
        for name in ("paradigm", "name", "gives_tokens"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    @property
    def spec(self) -> InputSpec:
        """What the network wants to see."""
        spec = self.model.spec
        assert isinstance(spec, InputSpec)
        return spec

    def forward(self, images: Tensor) -> Any:
        """The network's output, reordered by its codec."""
        return CODECS[self.output].reorder(self.model(images), self.order)

    def group(self, crops: Tensor) -> Tensor:
        """What the network's second half says of heatmaps inside boxes (`codecs.people`), in the wanted order.

        Args:
            crops: `[R, K, h, w]`; keypoints that are not wanted are empty maps to the network.
        """
        network: Any = self.model
        own = crops.new_zeros((crops.shape[0], network.num_keypoints, *crops.shape[2:]))
        own[:, self.order] = crops
        said: Tensor = network.group(own)
        return said[:, self.order]


def in_order_of(model: nn.Module, names: Sequence[str] | None, wanted: Sequence[str], who: str) -> nn.Module:
    """A network that says its keypoints in the wanted order: itself, or `Reordered` with a warning.

    Args:
        model: the network.
        names: of its keypoints, from its card; None if they are not known; the order is then kept.
        wanted: names of the data's keypoints.
        who: the network, for the message.

    Raises:
        ValueError: the network does not have all the wanted keypoints, by name.
    """
    if names is None or tuple(names) == tuple(wanted):
        return model
    try:
        order = match(names, wanted)
    except ValueError as error:
        raise ValueError(f"{who} has other keypoints than the data: {error}") from None
    if order == tuple(range(len(names))):  # another spelling
        return model
    left = len(names) - len(order)
    warnings.warn(
        f"{who} has its keypoints in another order than the data: they are matched by name"
        + (f", and {left} of its keypoints are left out" if left else ""),
        stacklevel=3,
    )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return Reordered(model, order).to(device)
