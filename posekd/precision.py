"""Floating-point precisions by the names that recipes use."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str) -> None:
    """Refuses a name that is not a `Precision`.

    Raises:
        ValueError: the name is not fp32, bf16 or fp16.
    """
    if name not in DTYPES:
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {name!r}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to a precision on a type of device; `fp32` disables autocast, also that of an outer block."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
