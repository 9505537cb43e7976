"""Checkpoints on the Hugging Face Hub: weights, card, and a page (README.md) that says what the card says.

Only safetensors, JSON and that page travel. Who one is, `huggingface_hub` knows (`hf auth login`, or HF_TOKEN): nothing
here reads a token.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posekd.models import create_model_from_card
from posekd.models.weights import find_checkpoint, read_card
from posekd.packages import need
from posekd.skeleton import skeleton_from_facts

NAME = "best"  # of the files on the hub, so that a pulled folder is like a run's
PATTERNS = ["*.safetensors", "*.json", "README.md"]


class HubError(OSError):
    """The hub did not do what was asked; the message says what it answered."""


def push(
    path: str | os.PathLike[str],
    repository: str,
    *,
    licence: str | None = None,
    private: bool = False,
    endpoint: str | None = None,
) -> str:
    """Puts a checkpoint on the hub, in a repository that is made if it does not exist.

    Args:
        path: a run's folder, or a `.safetensors` file with its card.
        repository: `OWNER/NAME`.
        licence: of these weights, e.g. `apache-2.0`, for the card and the page; that of the card if None.
        private: whether a new repository is private.
        endpoint: address of the hub, where it is not the usual one.

    Returns:
        The address of the repository.

    Raises:
        MissingPackageError: huggingface_hub is not installed.
        FileNotFoundError: no checkpoint, or none with a card.
        ValueError: a card that cannot be read, or a name that is none.
        HubError: the hub refuses, or cannot be reached.
    """
    _check_name(repository)
    weights, card = _checkpoint(path)
    if licence is not None:
        card = {**card, "licence": licence}
    page = describe(card, repository)
    hub = need("huggingface_hub", "huggingface")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        shutil.copyfile(weights, here / f"{NAME}.safetensors")
        (here / f"{NAME}.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (here / "README.md").write_text(page, encoding="utf-8")
        try:
            api = hub.HfApi(endpoint=endpoint)
            url = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
            api.upload_folder(repo_id=repository, folder_path=here, commit_message="posekd push")
        except Exception as error:  # of the library's and of its HTTP client's many classes
            raise HubError(f"{repository} was not written: {_sentence(error)}") from error
    return str(url)


def pull(
    repository: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Gets a checkpoint from the hub.

    Args:
        repository: `OWNER/NAME`.
        folder: where to write; `posekd.load_model` takes it.
        revision: branch, tag or commit; the newest if None.
        endpoint: address of the hub, where it is not the usual one.

    Returns:
        The checkpoint.

    Raises:
        MissingPackageError: huggingface_hub is not installed.
        FileExistsError: the folder holds a checkpoint already.
        ValueError: what was got is no checkpoint of posekd.
        HubError: the hub refuses, or cannot be reached.
    """
    _check_name(repository)
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.glob("*.safetensors"))):
        raise FileExistsError(f"{folder} is there already, and would be overwritten: give another folder")
    hub = need("huggingface_hub", "huggingface")
    try:
        hub.snapshot_download(
            repository, revision=revision, endpoint=endpoint, local_dir=folder, allow_patterns=PATTERNS
        )
    except Exception as error:  # of the library's and of its HTTP client's many classes
        raise HubError(f"{repository} was not got: {_sentence(error)}") from error
    try:
        weights, card = _checkpoint(folder)
        create_model_from_card(card, weights)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{repository} is in {folder}, and holds no checkpoint of posekd: {error}") from error
    return weights


def describe(card: Mapping[str, Any], repository: str) -> str:
    """The page of a checkpoint, Markdown with the hub's facts at its head.

    Args:
        card: of the checkpoint.
        repository: `OWNER/NAME`.
    """
    model, teacher = card["model"], card.get("teacher") or {}
    spec = (model.get("config") or {}).get("spec") or {}
    head = ["---", "library_name: posekd", "pipeline_tag: keypoint-detection"]
    head += [f"license: {card['licence']}"] if card.get("licence") else []
    head += ["tags:", "- pose-estimation", "- knowledge-distillation", "---"]
    rows = {
        "network": f"{model['name']} ({model['family']})",
        "paradigm": str(model.get("paradigm", "top_down")).replace("_", "-"),
        "output": str(model.get("output", "heatmaps")).replace("_", " "),
        "input": _input(spec),
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in (card.get("metrics") or {}).items()) or "none",
        "licence": card.get("licence", "not stated"),
        "teacher": _teacher(teacher),
    }
    lines = [*head, "", f"# {repository.split('/')[-1]}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    if card.get("skeleton"):
        skeleton = skeleton_from_facts(card["skeleton"])
        lines += ["", f"## Keypoints: {skeleton.name}", "", "| | keypoint | OKS sigma |", "|---|---|---|"]
        points = zip(skeleton.keypoints, skeleton.sigmas, strict=True)
        lines += [f"| {i} | {name} | {sigma:g} |" for i, (name, sigma) in enumerate(points)]
    code = ["```bash", f"posekd pull {repository} here", "```", "", "```python", "import posekd"]
    code += ['people = posekd.load_model("here").predict(images)', "```"]
    return "\n".join([*lines, "", "## Use", "", *code]) + "\n"


def _input(spec: Mapping[str, Any]) -> str:
    if not spec:
        return "see the card"
    height, width = spec["size"]
    order = "BGR" if spec.get("bgr") else "RGB"
    return f"{height} x {width} (height x width), {order}, mean {spec['mean']}, std {spec['std']} of 0 to 1"


def _teacher(teacher: Mapping[str, Any]) -> str:
    if not teacher:
        return "none"
    source = teacher.get("source")
    name = teacher.get("name") or "a network"
    where = f" ({str(source).rstrip('/').split('/')[-1]})" if source else ""
    return f"{name}{where}, licence: {teacher.get('licence', 'unknown')}"


def _checkpoint(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    weights = find_checkpoint(path)
    if weights is None:
        raise FileNotFoundError(f"there is no run or .safetensors file {path}")
    card = read_card(weights)
    if card is None:
        raise FileNotFoundError(f"{weights} has no card (.json) beside it, so nobody could load it")
    if not isinstance(card.get("model"), Mapping) or not {"name", "family"} <= set(card["model"]):
        raise ValueError(f"{weights.with_suffix('.json')} is not a card of posekd: it does not say which model it is")
    return weights, card


def _check_name(repository: str) -> None:
    parts = repository.split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"a repository on the hub is OWNER/NAME, got {repository!r}")


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
