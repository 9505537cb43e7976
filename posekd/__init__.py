"""posekd distils big human-pose networks into small fast ones, and ships the kernels that make it fast."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posekd import ops
    from posekd.deploy.load import load_model
    from posekd.engine.evaluate import evaluate
    from posekd.engine.train import train
    from posekd.models import create_model, list_models
    from posekd.skeleton import Skeleton

try:
    __version__ = version("posekd")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "Skeleton": "posekd.skeleton",
    "create_model": "posekd.models",
    "evaluate": "posekd.engine.evaluate",
    "list_models": "posekd.models",
    "load_model": "posekd.deploy.load",
    "train": "posekd.engine.train",
}

__all__ = ["Skeleton", "__version__", "create_model", "evaluate", "list_models", "load_model", "ops", "train"]


def __getattr__(name: str) -> Any:
    # PEP 562: torch is imported when something needs it, so that `posekd --help` answers at once
    if name == "ops":
        return importlib.import_module("posekd.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'posekd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
