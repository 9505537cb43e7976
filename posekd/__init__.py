"""posekd distils big human-pose networks into small fast ones, and ships the kernels that make it fast."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posekd import ops
    from posekd.models import create_model, list_models

try:
    __version__ = version("posekd")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "create_model", "list_models", "ops"]


def __getattr__(name: str) -> Any:
    # PEP 562: torch is imported when something needs it, so that `posekd --help` answers at once
    if name == "ops":
        return importlib.import_module("posekd.ops")
    if name in ("create_model", "list_models"):
        return getattr(importlib.import_module("posekd.models"), name)
    raise AttributeError(f"module 'posekd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
