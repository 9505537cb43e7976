"""The groups `student` and `teacher` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posekd.distill.teachers import FOREIGN, Foreign, names_of


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
        name: as for other networks; `onnx`, `huggingface` or `torch` for a network from elsewhere, whose `overrides`
            are the `size`, `mean`, `std` and `bgr` of its input.
        path: of `onnx` the file; of `huggingface` a folder, or the name of a repository on the hub.
        codec: of `onnx` and `torch`: what it gives, `heatmaps`, `simcc` or `coordinates`; told by the shapes of its
            outputs if null.
        units: of coordinates: `pixels`, `fractions` of the input's width and height, or `centred` fractions; told by
            their values if null.
        udp: of all three: whether its heatmaps are UDP's; if null, those of `huggingface` are.
        dataset: of `huggingface`: which expert of a mixture (ViTPose++) is asked; 0, COCO's, if null.
        factory: of `torch`: `package.module:function`, which gives a module with a `spec`.
        keypoints: names of its keypoints, in its order, or the name of a common set (`bridging.KEYPOINT_SETS`); if null
            what it tells itself (in a card, or by its configuration), else the data's.
        licence: of its weights, for the student's card; if null what it tells itself.
    """

    path: str | None = None
    codec: str | None = None
    factory: str | None = None
    keypoints: list[str] | str | None = None
    units: str | None = None
    udp: bool | None = None
    dataset: int | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for names, key, value in ((("onnx", "huggingface"), "path", self.path), (("torch",), "factory", self.factory)):
            if (self.name in names) != (value is not None):
                mine = self.name if self.name in names else " or ".join(names)
                raise ValueError(f"teacher.name {mine} and teacher.{key} belong together: give both, or neither")
        for key, of in (("codec", ("onnx", "torch")), ("units", ("onnx", "torch")), ("dataset", ("huggingface",))):
            if getattr(self, key) is not None and self.name not in of:
                raise ValueError(f"teacher.{key} is of a teacher of the name {' or '.join(of)}, not of {self.name}")
        if self.udp is not None and not self.foreign:
            raise ValueError("teacher.udp is of a network from elsewhere")
        if self.foreign and (self.weights is not None or self.backbone is not None):
            raise ValueError(f"a teacher of the name {self.name} has its own weights: give no others")
        names_of(self.keypoints)

    def elsewhere(self) -> Foreign:
        """The teacher from elsewhere that this names."""
        return Foreign(
            self.name, self.path, self.factory, self.overrides, self.codec, self.units, self.udp, self.dataset,
            names_of(self.keypoints),
        )  # fmt: skip

    @property
    def foreign(self) -> bool:
        """Whether it is a network from elsewhere."""
        return self.name in FOREIGN
