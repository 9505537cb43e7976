"""The groups `student` and `teacher` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posekd.distill.teachers import FOREIGN


@dataclass(frozen=True)
class ModelSettings:
    """A network by name.

    Attributes:
        name: one of `posekd.list_models()`; a teacher needs none where the card beside `weights` knows it.
        weights: checkpoint to load; all its keys must fit.
        weights_key: under which entry of the checkpoint the weights are, where that is none of the usual names.
        backbone: ImageNet checkpoint from which the backbone starts.
        backbone_key: the same as `weights_key` for the backbone's checkpoint.
        overrides: settings of the model's configuration to change, e.g. `{size: [128, 96]}`.
    """

    name: str = ""
    weights: str | None = None
    weights_key: str | None = None
    backbone: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    backbone_key: str | None = None

    def __post_init__(self) -> None:
        for key, file in (("weights", self.weights), ("backbone", self.backbone)):
            if file is None and getattr(self, f"{key}_key") is not None:
                raise ValueError(f"{key}_key names an entry of the file `{key}`: give both")


@dataclass(frozen=True)
class TeacherSettings(ModelSettings):
    """A teacher: a network by name, or one from elsewhere.

    Attributes:
        name: as for other networks; `onnx` or `torch` for a network from elsewhere, whose `overrides` are the `size`,
            `mean`, `std` and `bgr` of its input.
        path: of `onnx`: the file.
        codec: of `onnx`: what it gives, `heatmaps` or `simcc`; told by the shapes of its outputs if null.
        factory: of `torch`: `package.module:function`, which gives a module with a `spec`.
        keypoints: of both: names of its keypoints, in its order; the data's if null.
    """

    path: str | None = None
    codec: str | None = None
    factory: str | None = None
    keypoints: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, key, value in (("onnx", "path", self.path), ("torch", "factory", self.factory)):
            if (self.name == name) != (value is not None):
                raise ValueError(f"teacher.name {name} and teacher.{key} belong together: give both, or neither")
        if self.codec is not None and self.name != "onnx":
            raise ValueError("teacher.codec says what the file of `teacher.name: onnx` gives")
        if self.foreign and (self.weights is not None or self.backbone is not None):
            raise ValueError(f"a teacher of the name {self.name} has its own weights: give no others")
        if self.keypoints is not None and not self.foreign:
            raise ValueError("teacher.keypoints are of a network from elsewhere: the card of another one tells them")

    @property
    def foreign(self) -> bool:
        """Whether it is a network from elsewhere."""
        return self.name in FOREIGN
