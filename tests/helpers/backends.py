"""Where the ops' tests run, and how close to float64 a result must come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from helpers import emulation
from posekd.ops import library

CPU_LEVELS = ("baseline", "avx2", "avx512")
EMULATED = ("forward", "reverse", "shuffled")
BACKENDS = [
    *(f"cpu-{level}" for level in CPU_LEVELS),
    *(pytest.param(f"emu-{order}", marks=pytest.mark.emu) for order in EMULATED),
    pytest.param("cuda", marks=pytest.mark.cuda),
]


@dataclass(frozen=True)
class Backend:
    """`kind` is "cpu", "emu" (CUDA kernels on CPU tensors) or "cuda"."""

    kind: str
    device: torch.device

    @property
    def float64(self) -> bool:
        """Only the CPU kernels take float64."""
        return self.kind == "cpu"


@contextmanager
def use(name: str) -> Iterator[Backend]:
    """Sends the ops to the backend `name` for a while; skips the test when it is not here."""
    kind, _, variant = name.partition("-")
    if library._core is None:
        pytest.fail(
            "the compiled core is not here: install the package (pip install .) and run `pytest`, which uses it"
        )
    if kind == "cuda":
        if not library.cuda_kernels()[0]:
            pytest.skip(library.cuda_kernels()[1])
        yield Backend(kind, torch.device("cuda"))
    elif kind == "emu":
        module = emulation.load()
        module.set_order(getattr(module.Order, variant), seed=7)
        with library.use_core(module):
            yield Backend(kind, torch.device("cpu"))
    else:
        if not library._core.set_vector_level(variant):
            pytest.skip(f"this processor or build has no {variant}")
        try:
            yield Backend(kind, torch.device("cpu"))
        finally:
            library._core.set_vector_level("")


def assert_as_good_as_torch(out: Tensor, lowprec: Tensor, ref64: Tensor, eps: float) -> None:
    """Checks `|out - ref64| <= 2 max|lowprec - ref64| + eps * max|ref64|`: no worse than plain PyTorch loses.

    `lowprec` is plain PyTorch in the inputs' precision, `ref64` the same in float64.
    """
    out, lowprec, ref64 = (x.detach().cpu().double() for x in (out, lowprec, ref64))
    assert out.shape == ref64.shape
    finite = ref64.isfinite()
    torch.testing.assert_close(out[~finite], ref64[~finite], rtol=0, atol=0, equal_nan=True)
    if finite.any():
        reached = (out - ref64)[finite].abs().max().item()
        allowed = 2 * (lowprec - ref64)[finite].abs().max().item() + eps * ref64[finite].abs().max().item()
        assert reached <= allowed, f"error {reached:.3g}, plain PyTorch allows {allowed:.3g}"
