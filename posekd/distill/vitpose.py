"""ViTPose and ViTPose++ of Hugging Face's `transformers`, as teachers (Xu et al. 2022, 2023).

Read from safetensors alone, from a folder or the hub; nothing is unpickled, and no code of a repository is run. A
checkpoint of ViTPose++ has an expert for each of the data sets that it was trained on: `dataset` chooses one. In the
published ones 0 is COCO, 1 AIC, 2 MPII, 3 AP-10K, 4 APT-36K, 5 COCO-WholeBody; their one head gives COCO's keypoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posekd.bridging import sets_of
from posekd.codecs import heatmaps
from posekd.distill.teachers import input_of
from posekd.packages import MissingPackageError, need
from posekd.skeleton import COCO
from posekd.structures import InputSpec

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class ViTPoseTeacher(nn.Module):
    """A ViTPose: images `[B, 3, H, W]` in, heatmaps `[B, K, H / 4, W / 4]` out (UDP's, see `convert.from_corners`).

    Args:
        path: a folder with `config.json` and `model.safetensors`, or the name of a repository on the hub.
        settings: of its input, where it is not what `preprocessor_config.json` says, see `input_of`.
        dataset: which expert of a mixture is asked; 0 if None.

    Attributes:
        spec: its input.
        num_keypoints: K.
        keypoint_names: of its configuration, in any spelling; COCO's where it gives none and has 17.
        said: what it is, in words.
        licence: what its model card (`README.md`) says; None if nothing.

    Raises:
        MissingPackageError: transformers is not installed.
        FileNotFoundError: no such folder or repository, or one without safetensors.
        ValueError: another kind of network, or an expert that it does not have.
    """

    paradigm, output = "top_down", heatmaps.NAME

    def __init__(self, path: str, settings: Mapping[str, Any] | None = None, dataset: int | None = None) -> None:
        super().__init__()
        self.name = path.rstrip("/").split("/")[-1]
        transformers = need("transformers", "huggingface")
        folder = _folder(path)
        config = _read(folder / "config.json")
        if config.get("model_type") != "vitpose":
            kind = config.get("model_type")
            raise ValueError(f"{path} is a {kind}: teachers of huggingface are of the model_type vitpose")
        if not any((folder / name).is_file() for name in WEIGHTS):
            raise FileNotFoundError(
                f"{path} has no {WEIGHTS[0]}: only safetensors are read, because a pickle can run code (transformers' "
                "`save_pretrained` writes them)"
            )
        self.model = _load(transformers, folder, path)
        self.spec = _input(self.model.config, folder, settings or {})
        self.num_keypoints = int(self.model.config.num_labels)
        self.keypoint_names = _names(config, self.num_keypoints)
        self.dataset = _expert(self.model.config, dataset, path)
        self.licence = _licence(folder)
        expert = "" if self.dataset is None else f", expert {self.dataset} of {_experts(self.model.config)}"
        self.said = f"{self.name} is a ViTPose of {self.num_keypoints} keypoints{expert}: heatmaps"

    def forward(self, images: Tensor) -> Tensor:
        """Heatmaps `[B, K, H / 4, W / 4]`."""
        expert = {}
        if self.dataset is not None:
            expert["dataset_index"] = torch.full((len(images),), self.dataset, device=images.device)
        maps: Tensor = self.model(images, **expert).heatmaps
        return maps


def _load(transformers: Any, folder: Path, path: str) -> Any:
    """The network, float32 in eval mode."""
    if not hasattr(transformers, "VitPoseForPoseEstimation"):
        raise MissingPackageError(
            f"transformers {transformers.__version__} has no ViTPose: pip install 'posekd[huggingface]' installs one"
        )
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        kind = transformers.VitPoseForPoseEstimation
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True).float().eval()
    except Exception as error:  # a damaged file, or weights that do not fit: each has its own class
        raise ValueError(f"{path} cannot be read as a ViTPose: {' '.join(str(error).split())}") from error
    finally:
        if shown:
            bars.enable_progress_bar()


def _folder(path: str) -> Path:
    """The folder itself, or the files of a repository on the hub, downloaded into its cache."""
    if Path(path).is_dir():
        return Path(path)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise FileNotFoundError(f"there is no folder {path}, and a repository on the hub is OWNER/NAME")
    hub = need("huggingface_hub", "huggingface")
    try:
        return Path(hub.snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:  # no network, no such repository, no access: each has its own class
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"there is no folder {path}, and the hub does not give it: {reason}") from error


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} has no {file.name}: it is no network of transformers")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, and an object was expected")
    return content


def _input(config: Any, folder: Path, settings: Mapping[str, Any]) -> InputSpec:
    """What the images must be: the size is the network's, colours are as its processor makes them."""
    sides = config.backbone_config.image_size
    size = (int(sides), int(sides)) if isinstance(sides, int) else (int(sides[0]), int(sides[1]))
    file = folder / "preprocessor_config.json"
    processor = _read(file) if file.is_file() else {}
    given: dict[str, Any] = {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    if processor.get("do_normalize") is False:
        given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    return input_of({**{key: value for key, value in given.items() if value is not None}, **settings}, size)


def _names(config: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    labels = config.get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    if len(names) == count and not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return names
    return COCO.keypoints if COCO.name in sets_of(count) else None


def _experts(config: Any) -> int:
    return int(getattr(config.backbone_config, "num_experts", 1) or 1)


def _expert(config: Any, dataset: int | None, path: str) -> int | None:
    count = _experts(config)
    if count == 1:
        if dataset:
            raise ValueError(f"teacher.dataset {dataset}: {path} is no mixture of experts, so there is none to choose")
        return None
    chosen = dataset or 0
    if not 0 <= chosen < count:
        raise ValueError(f"teacher.dataset {chosen}: {path} has the experts 0 to {count - 1}")
    return chosen


def _licence(folder: Path) -> str | None:
    """The entry `license` at the head of a model card."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S.*)$", head[1], re.MULTILINE) if head else None
    return found[1].strip(" '\"") if found else None
