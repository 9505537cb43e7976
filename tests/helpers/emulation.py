"""Builds and loads the CUDA emulation: the real `.cu` sources, compiled as C++, with one fiber per CUDA thread."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, *options: str) -> Path:
    """Builds the emulation in `folder` (nothing is done when it is up to date) and returns the module's file."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("the CUDA emulation needs cmake and a C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=False
    )
    if pybind11.returncode != 0:
        pytest.skip("the CUDA emulation needs pybind11: pip install 'posekd[test]'")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at once
        for command in (
            ["cmake", "-S", str(ROOT), "-B", str(folder), "-DPOSEKD_EMU=ON",
             f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.stdout.strip()}", *options],
            ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
        ):  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return next(folder.glob("_posekd_emu*.so"))


@functools.cache
def load() -> ModuleType:
    """The emulation module, built on first use; POSEKD_EMULATION names one that is built already."""
    file = os.environ.get("POSEKD_EMULATION") or build(ROOT / "build" / "emu")
    spec = importlib.util.spec_from_file_location("_posekd_emu", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def grid_rows(largest: int) -> Iterator[None]:
    """Within the block, the emulated device's grids have at most so many rows, instead of 65535."""
    load().set_grid_rows(largest)
    try:
        yield
    finally:
        load().set_grid_rows()
