"""The public libraries' per-sample ROIAlign (`roi_align_gather.cpp`), compiled on first use."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from torch import Tensor


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled baseline; None where there is no C++ compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    source = Path(__file__).with_name("roi_align_gather.cpp")
    target = Path(tempfile.mkdtemp(prefix="posekd-bench-")) / "roi_align_gather.so"
    command = [compiler, "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


def available() -> bool:
    """Whether the baseline can run here."""
    return _library() is not None


def _call(name: str, maps: Tensor, boxes: Tensor, crops: Tensor, scale: float, ratio: int) -> None:
    shape = (ctypes.c_int64 * 6)(*maps.shape[1:], len(boxes), *crops.shape[2:])
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (maps, boxes, crops)]
    getattr(_library(), name)(*pointers, shape, ctypes.c_float(scale), ctypes.c_int(ratio))


def forward(maps: Tensor, boxes: Tensor, crops: Tensor, scale: float, ratio: int) -> Tensor:
    """Writes `crops` `[R, C, P, Q]`; contiguous float32 on the CPU, aligned."""
    _call("roi_align_gather", maps, boxes, crops, scale, ratio)
    return crops


def backward(gradient: Tensor, boxes: Tensor, crops: Tensor, scale: float, ratio: int) -> Tensor:
    """Overwrites `gradient` `[N, C, H, W]` with the derivative, given that of `crops`."""
    _call("roi_align_scatter", gradient.zero_(), boxes, crops, scale, ratio)
    return gradient
