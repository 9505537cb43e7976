"""A network whose keypoints stand in another order than the data's, or are those of another set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posekd.bridging import Bridge, bridge
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


class Bridged(Reordered):
    """Says of another set of keypoints what a network can say of it, for training.

    Args:
        model: the network; its codec knows `bridged`.
        found: which of its keypoints are which of the wanted ones.

    Attributes:
        covered: bool `[K]`; of the other keypoints it says nothing, and its maps are 0.
    """

    covered: Tensor

    def __init__(self, model: nn.Module, found: Bridge) -> None:
        super().__init__(model, [source[0] if source else 0 for source in found.sources])
        midway = {k: source for k, source in enumerate(found.sources) if len(source) == 2}
        self.register_buffer("covered", torch.tensor(found.covered), persistent=False)
        self.register_buffer("midway", torch.tensor(list(midway), dtype=torch.int64), persistent=False)
        couples = torch.tensor(list(midway.values()), dtype=torch.int64).reshape(-1, 2).T.contiguous()
        self.register_buffer("couples", couples, persistent=False)
        self.gives_tokens = False

    def forward(self, images: Tensor) -> Any:
        """The network's output for the wanted keypoints."""
        said = self.model(images)
        return CODECS[self.output].bridged(said, self.order, self.covered, self.midway, self.couples)  # type: ignore


def bridged_to(
    model: nn.Module, names: Sequence[str] | None, wanted: Sequence[str], who: str
) -> tuple[nn.Module, Bridge | None]:
    """A teacher that speaks of the wanted keypoints, as far as it knows them.

    Args:
        model: the network.
        names: of its keypoints; None if they are not known: they are then taken for the wanted ones.
        wanted: names of the data's keypoints.
        who: the network, for messages.

    Returns:
        The network, and what its keypoints were taken for; None where they are the wanted ones.

    Raises:
        ValueError: it knows none of the keypoints, or is of a kind whose keypoints cannot be exchanged.
    """
    if names is None or tuple(names) == tuple(wanted):
        return model, None
    codec = CODECS[getattr(model, "output", heatmaps.NAME)]
    found = bridge(names, wanted, getattr(codec, "DERIVES", False))
    try:
        match(names, wanted)
    except ValueError:
        pass
    else:
        return in_order_of(model, names, wanted, who), found
    if not any(found.covered):
        raise ValueError(
            f"{who} knows none of the data's keypoints: it has {_few(names)}, and the data {_few(wanted)}; if they are "
            "the same under other names, give the data's names, in the teacher's order, as teacher.keypoints"
        )
    if not hasattr(codec, "bridged"):
        raise ValueError(f"{who} has other keypoints than the data, which cannot be joined in {codec.NAME}")
    return Bridged(model, found).to(_device_of(model)), found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


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
    return Reordered(model, order).to(_device_of(model))
