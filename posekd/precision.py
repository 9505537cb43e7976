"""Number formats by the names that recipes use."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str) -> None:
    """Refuses what is no `Precision`.

    Raises:
        ValueError: another name.
    """
    if name not in DTYPES:
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {name!r}")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to a precision on the device's kind; under `fp32` it changes nothing, and ends an outer one's effect."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
