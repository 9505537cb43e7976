"""The CUDA emulation itself: it runs kernels, and finds the faults that it is there to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import emulation

import posekd

pytestmark = pytest.mark.emu
ORDERS = ("forward", "reverse", "shuffled")


def sum_in(order: str, with_barrier: bool) -> torch.Tensor:
    module = emulation.load()
    module.set_order(getattr(module.Order, order), seed=1)
    values, out = torch.arange(96.0), torch.zeros(96)
    module.selftest_sum(values, out, with_barrier)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_a_correct_kernel_is_correct_in_every_order(order: str) -> None:
    assert (sum_in(order, with_barrier=True) == 95 * 96 / 2).all()


def test_a_missing_barrier_shows_in_some_order() -> None:
    # Shared memory starts as NaN: a thread that reads before another has written gets it.
    assert any(not (sum_in(order, with_barrier=False) == 95 * 96 / 2).all() for order in ORDERS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (0, "divergent __syncthreads.* has returned"),
        (1, r"divergent __syncthreads.*selftest\.cpp:\d+, but thread \d+ waits at .*selftest\.cpp:\d+"),
        (2, "divergent warp operation"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_divergent_barrier_is_reported_with_its_line(order: str, kind: int, message: str) -> None:
    module = emulation.load()
    module.set_order(getattr(module.Order, order), seed=1)
    with pytest.raises(RuntimeError, match=message):
        module.selftest_divergent(kind)
    assert (sum_in(order, with_barrier=True) == 95 * 96 / 2).all()  # and the next launch is unharmed


def test_a_grid_of_too_many_rows_is_refused() -> None:
    with emulation.grid_rows(0), pytest.raises(RuntimeError, match="the grid exceeds"):
        sum_in("forward", with_barrier=True)
    assert (sum_in("forward", with_barrier=True) == 95 * 96 / 2).all()


def cluster_sums(order: str, kind: int = 0) -> torch.Tensor:
    module = emulation.load()
    module.set_order(getattr(module.Order, order), seed=1)
    out = torch.zeros(2 * 4 * 64)  # two clusters of four blocks
    module.selftest_cluster(out, kind)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_cluster_see_each_other(order: str) -> None:
    assert (cluster_sums(order) == 0 + 1 + 2 + 3).all()


def test_a_missing_cluster_barrier_shows_in_some_order() -> None:
    assert any(not (cluster_sums(order, kind=2) == 6).all() for order in ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_that_its_cluster_waits_for_in_vain_is_reported(order: str) -> None:
    with pytest.raises(RuntimeError, match=r"divergent cluster barrier.*selftest\.cpp:\d+.*has returned"):
        cluster_sums(order, kind=1)


@pytest.mark.parametrize("order", ORDERS)
def test_an_asynchronous_copy_is_there_once_it_is_waited_for(order: str) -> None:
    module = emulation.load()
    module.set_order(getattr(module.Order, order), seed=1)
    values, out = torch.arange(96.0), torch.zeros(96)
    module.selftest_copy(values, out, True)
    assert torch.equal(out, values.flip(0))
    module.selftest_copy(values, out, False)
    assert out.isnan().all()  # shared memory starts so


SANITIZED = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("_posekd_emu", sys.argv[1])
emu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emu)
if sys.argv[2] == "overrun":
    import numpy as np
    emu.selftest_overrun(np.zeros(64, np.float32))
else:
    import pytest
    settings = ["-c", sys.argv[3] + "/pyproject.toml", "--rootdir", sys.argv[3], "-p", "no:cacheprovider", "-n0"]
    sys.exit(pytest.main(["-q", "-x", *settings, "-k", "emu-shuffled", sys.argv[3] + "/tests/ops"]))
"""


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return emulation.build(emulation.ROOT / "build" / "emu-sanitized", "-DPOSEKD_SANITIZE=address,undefined")


@pytest.mark.slow
@pytest.mark.xdist_group("sanitizers")  # one worker waits for the build, not all of them
@pytest.mark.skipif(sys.platform != "linux", reason="needs libasan")
class TestSanitizers:
    """The same sources under AddressSanitizer and UndefinedBehaviorSanitizer, on the ops' small shapes."""

    def run(self, module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        libraries = [
            subprocess.run(
                ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libubsan.so", "libstdc++.so")
        ]
        environment = {
            **os.environ,
            "LD_PRELOAD": ":".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "POSEKD_EMULATION": str(module),
            "PYTHONPATH": str(Path(posekd.__file__).parents[1]),
        }
        return subprocess.run(
            [sys.executable, "-c", SANITIZED, str(module), *arguments],
            capture_output=True, text=True, timeout=1500, check=False, env=environment, cwd=module.parent,
        )  # fmt: skip

    def test_an_out_of_bounds_write_is_named(self, sanitized: Path) -> None:
        done = self.run(sanitized, "overrun")
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr
        assert "selftest.cpp" in done.stderr

    def test_every_kernel_is_clean(self, sanitized: Path) -> None:
        done = self.run(sanitized, "clean", str(emulation.ROOT))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        assert " passed" in done.stdout
