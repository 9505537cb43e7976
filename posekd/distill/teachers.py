"""Teachers from elsewhere: networks in ONNX files, ViTPose of `transformers`, and any PyTorch module.

Whatever they say becomes heatmaps (`codecs.foreign`), of the data's keypoints (`bridging`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from posekd.bridging import named_set, sets_of
from posekd.codecs import coordinates, heatmaps
from posekd.codecs.foreign import Drawn, Meaning, as_heatmaps, meaning_of, tensors_of
from posekd.distill.convert import from_corners
from posekd.files import nearest
from posekd.packages import open_session
from posekd.structures import InputSpec

FOREIGN = ("huggingface", "onnx", "torch")
"""What a recipe's `teacher.name` says of a network from elsewhere."""


@dataclass(frozen=True)
class Foreign:
    """A teacher from elsewhere, as a recipe's `teacher` names it.

    Attributes:
        name: one of `FOREIGN`.
        path: of `onnx` the file, of `huggingface` a folder or a name on the hub.
        factory: of `torch`, see `torch_teacher`.
        input: see `input_of`.
        codec: what it gives, see `codecs.foreign.meaning_of`; told by the shapes if None.
        units: of coordinates, likewise.
        udp: whether its heatmaps are UDP's, see `convert.from_corners`; None: those of `huggingface` are.
        dataset: of `huggingface`: which expert of a mixture (ViTPose++) is asked.
        keypoints: names of its keypoints, in its order; None if it tells them itself, or has the data's.
    """

    name: str
    path: str | None = None
    factory: str | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    codec: str | None = None
    units: str | None = None
    udp: bool | None = None
    dataset: int | None = None
    keypoints: Sequence[str] | None = None


def input_of(settings: Mapping[str, Any], size: tuple[int, int] | None = None) -> InputSpec:
    """The input of a network from elsewhere: `size`, `mean`, `std`, `bgr`; ImageNet's normalisation without.

    Args:
        settings: a recipe's `teacher.overrides`.
        size: height and width, where the network itself tells them.

    Raises:
        ValueError: an unknown key, or a size that is missing or not the network's.
    """
    known = [field.name for field in fields(InputSpec)]
    for key in settings:
        if key not in known:
            raise ValueError(f"teacher.overrides.{key}: a teacher's input has no {key!r}{nearest(key, known)}")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if size is None and "size" not in given:
        raise ValueError("the teacher does not tell its input: give teacher.overrides.size, e.g. [256, 192]")
    if size is not None and tuple(given.get("size", size)) != size:
        raise ValueError(f"the teacher's input is {size[0]}x{size[1]}, and teacher.overrides.size says {given['size']}")
    return InputSpec(**{**given, **({} if size is None else {"size": size})})


class OnnxTeacher(nn.Module):
    """A network in an ONNX file: images `[B, 3, H, W]` in, heatmaps `[B, K, h, w]` out.

    Args:
        path: the file. It has one input.
        settings: `size`, `mean`, `std` and `bgr` of its input, see `input_of`.
        codec: what its outputs are; told by their shapes if None.
        units: of coordinates, likewise.
        num_keypoints: K, where it is known.

    Attributes:
        spec: its input.
        meaning: what its outputs are taken for.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: another kind of network; the message gives its inputs and outputs.
    """

    paradigm, output = "top_down", heatmaps.NAME

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any] | None = None,
        codec: str | None = None,
        units: str | None = None,
        num_keypoints: int | None = None,
    ) -> None:
        super().__init__()
        self.name = Path(path).name
        self._session = open_session(path)
        given = self._session.get_inputs()
        shape = given[0].shape
        if len(given) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            raise ValueError(
                f"{path} is no teacher: its inputs are {[(i.name, i.shape) for i in given]}, and one of "
                "[B, 3, height, width] was expected"
            )
        fixed = all(isinstance(side, int) for side in shape[2:])
        self.spec = input_of(settings or {}, (shape[2], shape[3]) if fixed else None)
        self._input, self._batch = given[0], shape[0] if isinstance(shape[0], int) else None
        outputs = self._run(np.zeros((self._batch or 1, 3, *self.spec.size), np.float32))
        tensors = [torch.from_numpy(output) for output in outputs]
        self.meaning = meaning_of(tensors, self.spec.size, codec, units, num_keypoints, self.name)

    @torch.compiler.disable
    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps float32 `[B, K, h, w]` on the images' device; they are computed on the CPU."""
        pixels = images.detach().float().cpu().numpy()
        size = self._batch or len(pixels)
        parts = [self._run(_filled(pixels[i : i + size], size)) for i in range(0, len(pixels), max(size, 1))]
        said = [torch.from_numpy(np.concatenate(part)[: len(pixels)]).float() for part in zip(*parts, strict=True)]
        return as_heatmaps(said, self.meaning, self.spec.size).to(images.device)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        dtype = np.float16 if "float16" in self._input.type else np.float32
        try:
            outputs: list[np.ndarray] = self._session.run(None, {self._input.name: images.astype(dtype)})
            return outputs
        except Exception as error:  # onnxruntime's errors share no class
            raise ValueError(f"the teacher {self.name} refused images of {images.shape}: {error}") from error


def _filled(images: np.ndarray, size: int) -> np.ndarray:
    """A last batch that is too short for a file of a fixed batch size, filled up with its first image."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[:1], missing, 0)]) if missing > 0 else images


class SaidAsHeatmaps(nn.Module):
    """A module that gives SimCC's vectors or coordinates, as a teacher of heatmaps.

    Args:
        model: the module, with a `spec`.
        meaning: what its outputs are.
    """

    output = heatmaps.NAME

    def __init__(self, model: nn.Module, meaning: Meaning) -> None:
        super().__init__()
        self.model, self.meaning = model, meaning
        self.paradigm, self.name, self.spec = model.paradigm, model.name, model.spec

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps float32 `[B, K, H / 4, W / 4]`."""
        return as_heatmaps(tensors_of(self.model(images)), self.meaning, (images.shape[2], images.shape[3]))


class FromCorners(nn.Module):
    """A teacher whose heatmaps are UDP's, in the pixel convention of all others (`convert.from_corners`).

    Args:
        model: it gives heatmaps.
    """

    output = heatmaps.NAME

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.paradigm, self.name, self.spec = model.paradigm, model.name, model.spec

    def forward(self, images: Tensor) -> list[Tensor]:
        """Heatmaps of each stage."""
        size = images.shape[2], images.shape[3]
        return [from_corners(stage, size) for stage in heatmaps.read(self.model(images))]


def torch_teacher(factory: str) -> nn.Module:
    """The module that a function gives: with `spec: InputSpec` and heatmaps `[B, K, h, w]` (or stages of them) out.

    Args:
        factory: `package.module:function`, without arguments. It may name its `output` codec, its `paradigm` and
            `keypoint_names`.

    Raises:
        ValueError: no such function, or what it gives is no module with a `spec`.
    """
    module_name, colon, name = factory.partition(":")
    if not colon or not name:
        raise ValueError(f"teacher.factory is package.module:function, got {factory!r}")
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"teacher.factory {factory!r} cannot be found: {error}") from error
    network = function()
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "spec", None), InputSpec):
        raise ValueError(
            f"{factory} gave a {type(network).__name__}, and a torch module with `spec: InputSpec` is needed"
        )
    for key, value in (("paradigm", "top_down"), ("output", heatmaps.NAME), ("name", name)):
        if not hasattr(network, key):
            setattr(network, key, value)
    return network


@torch.no_grad()
def _listened_to(
    network: nn.Module, codec: str | None, units: str | None, num_keypoints: int | None
) -> tuple[nn.Module, str, int | None]:
    """A module whose outputs are turned into heatmaps where they are none; what they are, and how many keypoints."""
    if network.output == coordinates.NAME and codec is None:  # a module that gives `Coordinates`
        return Drawn(network), "", None
    if network.output != heatmaps.NAME:  # the method says what it needs
        return network, "", None
    size = cast(InputSpec, network.spec).size
    parameter = next(network.parameters(), torch.zeros(0))
    image = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
    was = network.training
    said = tensors_of(network.eval()(image))
    network.train(was)
    meaning = meaning_of(said, size, codec, units, num_keypoints, str(network.name))
    if meaning.codec == heatmaps.NAME:  # all stages of them, as they are
        return network, meaning.said, meaning.num_keypoints
    return SaidAsHeatmaps(network, meaning), meaning.said, meaning.num_keypoints


@dataclass(frozen=True)
class Opened:
    """A teacher from elsewhere that was opened.

    Attributes:
        network: it gives heatmaps.
        keypoints: names of its keypoints; None if nobody tells them.
        said: in words, what its outputs are.
    """

    network: nn.Module
    keypoints: tuple[str, ...] | None
    said: str


def open_foreign(wanted: Foreign, expected: int | None = None) -> Opened:
    """Opens a teacher from elsewhere.

    Args:
        wanted: the teacher.
        expected: the number of keypoints that it should have, where nobody tells their names.

    Raises:
        MissingPackageError: onnxruntime or transformers is not installed.
        FileNotFoundError: no such file.
        ValueError: a network of another kind, or with another number of keypoints.
    """
    names = None if wanted.keypoints is None else tuple(wanted.keypoints)
    known = None if names is None else len(names)
    if wanted.name == "onnx":
        teacher = OnnxTeacher(str(wanted.path), wanted.input, wanted.codec, wanted.units, known)
        network: nn.Module = teacher
        said = teacher.meaning.said
        count: int | None = teacher.meaning.num_keypoints
    elif wanted.name == "huggingface":
        from posekd.distill.vitpose import ViTPoseTeacher

        vitpose = ViTPoseTeacher(str(wanted.path), wanted.input, wanted.dataset)
        network, said, count = vitpose, vitpose.said, vitpose.num_keypoints
        names = names or vitpose.keypoint_names
    else:
        if wanted.input:
            raise ValueError("teacher.overrides: the module of teacher.factory tells its input by its `spec`")
        network = torch_teacher(str(wanted.factory))
        own = getattr(network, "keypoint_names", None)
        names = names or (None if own is None else tuple(own))
        network, said, count = _listened_to(network, wanted.codec, wanted.units, None if names is None else len(names))
    _check_count(count, expected if names is None else len(names))
    if wanted.udp if wanted.udp is not None else wanted.name == "huggingface":
        network = FromCorners(network)
        said += "; UDP's heatmaps"
    return Opened(network, names, said)


def _check_count(count: int | None, expected: int | None) -> None:
    """Refuses a network of another number of keypoints."""
    if count is not None and expected is not None and count != expected:
        like = " or ".join(f"teacher.keypoints: {name}" for name in sets_of(count))
        raise ValueError(
            f"the teacher gives {count} keypoints, and {expected} are expected: name them, in its order, as "
            f"teacher.keypoints{f' (or the set that they are, e.g. {like})' if like else ''}"
        )


def names_of(keypoints: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The names that a recipe gives as `teacher.keypoints`: a list, or the name of a common set.

    Raises:
        ValueError: no such set.
    """
    if isinstance(keypoints, str):
        return named_set(keypoints)
    return None if keypoints is None else tuple(keypoints)
