"""Teachers from elsewhere: networks in ONNX files, and any PyTorch module. They give heatmaps, as our own do.

**SimCC** (RTMPose: `simcc_x [B, K, n W]` and `simcc_y [B, K, n H]`, values over the columns and rows of the input, n
bins per pixel) becomes heatmaps of a quarter of the input:

    heatmap(v, u) = s a_y(v) a_x(u),   a_x(u) = max(0, max of simcc_x over the bins of pixel u) / max simcc_x,

`a_y` likewise, and s = min(max simcc_x, max simcc_y) in 0..1, RTMPose's score of a keypoint. Pixel u of a heatmap
stands at input pixel 4 u (`heatmap = input / 4`), so its bins are those within two input pixels of that.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from posekd.codecs import heatmaps
from posekd.codecs.reordered import in_order_of
from posekd.files import nearest
from posekd.packages import open_session
from posekd.skeleton import Skeleton
from posekd.structures import InputSpec

FOREIGN = ("onnx", "torch")
"""What a recipe's `teacher.name` says of a network from elsewhere."""


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
        path: the file. It has one input; its first outputs are heatmaps `[B, K, h, w]`, or SimCC's two vectors.
        settings: `size`, `mean`, `std` and `bgr` of its input, see `input_of`.
        codec: `heatmaps` or `simcc`; told by the outputs' shapes if None.

    Attributes:
        spec: its input.
        said: in words, what its outputs are taken for.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: another kind of network; the message gives its inputs and outputs.
    """

    paradigm, output = "top_down", heatmaps.NAME

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, codec: str | None = None
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
        shapes = [output.shape for output in outputs]
        if codec not in (None, "simcc", heatmaps.NAME):
            raise ValueError(f"teacher.codec {codec!r} is not known: heatmaps or simcc")
        self.codec = codec or ("simcc" if _is_simcc(shapes, self.spec.size) else heatmaps.NAME)
        fits = _is_simcc(shapes, self.spec.size) if self.codec == "simcc" else len(shapes[0]) == 4
        if not fits:
            raise ValueError(
                f"{path} gives {shapes}, which are not {self.codec}: heatmaps are [B, K, h, w], SimCC's vectors "
                f"[B, K, {self.spec.size[1]} n] and [B, K, {self.spec.size[0]} n]"
            )
        self.num_keypoints = int(shapes[0][1])
        self.said = (
            f"{self.name} gives {', '.join(map(str, shapes[: 2 if self.codec == 'simcc' else 1]))}: {self.codec}"
        )

    @torch.compiler.disable
    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps float32 `[B, K, h, w]` on the images' device; they are computed on the CPU."""
        pixels = images.detach().float().cpu().numpy()
        size = self._batch or len(pixels)
        parts = [self._run(_filled(pixels[i : i + size], size)) for i in range(0, len(pixels), max(size, 1))]
        said = [torch.from_numpy(np.concatenate(part)[: len(pixels)]).float() for part in zip(*parts, strict=True)]
        maps = from_simcc(said[0], said[1], self.spec.size) if self.codec == "simcc" else said[0]
        return maps.to(images.device)

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


def _is_simcc(shapes: Sequence[tuple[int, ...]], size: tuple[int, int]) -> bool:
    if len(shapes) < 2 or len(shapes[0]) != 3 or len(shapes[1]) != 3 or shapes[0][1] != shapes[1][1]:
        return False
    return all(shape[2] >= side and shape[2] % side == 0 for shape, side in zip(shapes, size[::-1], strict=False))


def from_simcc(columns: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Heatmaps from SimCC's vectors, see the module's formula.

    Args:
        columns: `[B, K, n W]`.
        rows: `[B, K, n H]`.
        size: `(H, W)` of the input in pixels, multiples of 4.

    Returns:
        float32 `[B, K, H / 4, W / 4]` in 0..1.
    """
    (along_y, high_y), (along_x, high_x) = _axis(rows, size[0]), _axis(columns, size[1])
    score = torch.minimum(high_x, high_y).clamp(0, 1)
    return score[..., None] * along_y[..., :, None] * along_x[..., None, :]


def _axis(values: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """`a` and the largest value, `[B, K, side / 4]` and `[B, K, 1]`."""
    bins = values.float().clamp_min(0)
    window = bins.shape[2] // side * heatmaps.STRIDE
    # pixel u takes the bins 4 u n - 2 n up to 4 u n + 2 n
    padded = nn.functional.pad(bins, (window // 2, 0))
    pooled = nn.functional.max_pool1d(padded, window, window)[..., : side // heatmaps.STRIDE]
    highest = pooled.amax(2, keepdim=True)
    return pooled / highest.clamp_min(1e-6), highest


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


def open_foreign(
    skeleton: Skeleton,
    path: str | None,
    factory: str | None,
    settings: Mapping[str, Any],
    codec: str | None,
    keypoints: Sequence[str] | None,
) -> tuple[nn.Module, str]:
    """A teacher from elsewhere, whose keypoints are put in the data's order by their names.

    Args:
        skeleton: of the data.
        path: an ONNX file; or
        factory: see `torch_teacher`.
        settings: see `input_of`; of a file alone.
        codec: see `OnnxTeacher`.
        keypoints: names of the teacher's, in its order; the data's if None and the network does not know them.

    Returns:
        The network, and in words what its outputs are taken for; empty where nothing had to be told.

    Raises:
        ValueError: a network of another kind, or keypoints that it does not have.
    """
    if path is not None:
        network: nn.Module = OnnxTeacher(path, settings, codec)
    elif settings:
        raise ValueError("teacher.overrides: the module of teacher.factory tells its input by its `spec`")
    else:
        network = torch_teacher(str(factory))
    names = keypoints or getattr(network, "keypoint_names", None)
    count, wanted = getattr(network, "num_keypoints", None), len(names or skeleton.keypoints)
    if count is not None and count != wanted:
        raise ValueError(
            f"the teacher gives {count} keypoints, and {wanted} are expected: name them, in its order, as "
            "teacher.keypoints"
        )
    ordered = in_order_of(network, names, skeleton.keypoints, f"the teacher {path or factory}")
    return ordered, str(getattr(network, "said", ""))
