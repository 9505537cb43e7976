"""The base class of all models, and how a model's configuration becomes a card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from posekd.structures import InputSpec, Instances


class ModelConfig(Protocol):
    """A frozen dataclass of one family's settings; every one has a `spec`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def spec(self) -> InputSpec:
        """The input that the network expects by default."""


class PoseModel(nn.Module):
    """A network with the facts that training, evaluation and export need.

    Attributes:
        family: class attribute, the name of the architecture in cards.
        paradigm: class attribute, name of its paradigm (`posekd.paradigms.PARADIGMS`).
        output: class attribute, name of the codec of its output (`posekd.codecs.CODECS`).
        gives_tokens: class attribute, whether its output has keypoint tokens and visual tokens.
        head_prefixes: class attribute, starts of the state-dict keys that an ImageNet checkpoint cannot have.
        config: the settings it was built from.
        num_keypoints: K, the number of keypoints it predicts.
        name: the name it was created by.
        keypoint_names: names of the K keypoints, from the card of the run that trained it; None if they are not known.
        predict: finds people in images; networks that `posekd.load_model` gives have it.
    """

    family: ClassVar[str]
    paradigm: ClassVar[str] = "top_down"
    output: ClassVar[str] = "heatmaps"
    gives_tokens: ClassVar[bool] = False
    head_prefixes: ClassVar[tuple[str, ...]] = ()
    config: Any  # a ModelConfig; each family narrows it
    num_keypoints: int
    name: str
    keypoint_names: tuple[str, ...] | None = None
    predict: Callable[..., Instances]

    @property
    def spec(self) -> InputSpec:
        """The input that the network expects: size, normalisation, channel order."""
        return self.config.spec

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint under this network's names; a family published under other names overrides it."""
        return dict(state)


def config_to_dict(config: ModelConfig) -> dict[str, Any]:
    """The settings as plain JSON values (tuples become lists, as they do in a JSON file)."""
    return _jsonable(asdict(config))  # type: ignore[call-overload]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, (tuple, list)) else value


def model_card(model: PoseModel) -> dict[str, Any]:
    """The facts that are needed to build `model` again: name, family, number of keypoints, settings."""
    return {
        "name": model.name,
        "family": model.family,
        "paradigm": model.paradigm,
        "output": model.output,
        "num_keypoints": model.num_keypoints,
        "config": config_to_dict(model.config),
    }


def check_counts(config: ModelConfig, names: Iterable[str]) -> None:
    """Refuses settings that should be positive integers (or tuples of them) and are not.

    Raises:
        ValueError: names the setting and its value.
    """
    for name in names:
        value = getattr(config, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, bool) or not isinstance(item, int) or item < 1:
                raise ValueError(f"{name} must be a positive integer, or a tuple of them; got {value!r}")


def check_size(size: tuple[int, int], stride: int) -> None:
    """Refuses an input size that does not divide evenly down to the coarsest feature map.

    Args:
        size: `(height, width)` in pixels.
        stride: input pixels per pixel of the coarsest map.

    Raises:
        ValueError: names the size and the nearest sizes that work.
    """
    height, width = size
    if height < 1 or width < 1 or height % stride or width % stride:
        near = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise ValueError(
            f"input height and width must be multiples of {stride}, got {height}x{width}; "
            f"the nearest that works is {near[0]}x{near[1]}"
        )
