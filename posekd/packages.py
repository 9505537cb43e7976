"""Packages that are not always there: `posekd[deploy]` for exported files, `posekd[huggingface]` for its networks."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


class MissingPackageError(RuntimeError):
    """A package that is not installed; the message says how to install it."""


EXTRAS = {
    "deploy": "what exported files need",
    "huggingface": "what teachers of Hugging Face, `posekd push` and `pull` need",
}
"""Optional part of an installation (`posekd[NAME]`) -> what it is for."""


def need(name: str, extra: str = "deploy") -> ModuleType:
    """Imports an optional package.

    Args:
        name: of the module.
        extra: one of `EXTRAS`, which installs it.

    Raises:
        MissingPackageError: it is not there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{error}: pip install 'posekd[{extra}]' installs {EXTRAS[extra]}") from error


def open_session(
    path: str | os.PathLike[str], threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Any:
    """An onnxruntime session of a file.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        FileNotFoundError: no such file.
        ValueError: not an ONNX file.
    """
    onnxruntime = need("onnxruntime")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no exported network at {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # warnings are of its own optimiser
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime's errors share no class
        raise ValueError(f"{path} cannot be opened by onnxruntime: {error}") from error
