"""Packages that deployment needs and training does not (`pip install 'posekd[deploy]'`)."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingPackageError(RuntimeError):
    """A package that is not installed; the message says how to install it."""


def need(name: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        MissingPackageError: it is not there.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{error}: pip install 'posekd[deploy]' installs what exported files need") from error
