"""The compiled core: which tensors it sees, how it was built, and that forks and threads do it no harm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import posekd
from posekd.ops import build_info, distill_loss, library

core = library._core
assert core is not None, "the compiled core is not here: install the package (pip install .) and run `pytest`"

SOURCES = {
    "contiguous": lambda: torch.arange(24.0).view(2, 3, 4),
    "transposed": lambda: torch.arange(24.0).view(2, 3, 4).transpose(0, 2),
    "sliced": lambda: torch.arange(24.0).view(2, 3, 4)[:, 1:, ::2],
    "scalar": lambda: torch.tensor(1.5),
    "empty": lambda: torch.zeros(0, 5),
    "expanded": lambda: torch.ones(1, 3).expand(4, 3),
    "offset": lambda: torch.arange(10.0)[3:],
}


def in_fresh_python(code: str, **environment: str) -> str:
    """Runs `code` in a new interpreter, on the posekd that is tested here, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tempfile.gettempdir(),  # not the source tree, where Python would find the sources first
        env={**os.environ, "PYTHONPATH": str(Path(posekd.__file__).parents[1]), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


class TestTensorView:
    @pytest.mark.parametrize("name", SOURCES)
    def test_sees_a_tensor_as_it_is(self, name: str) -> None:
        tensor = SOURCES[name]()
        seen = core.describe(tensor)
        assert seen["present"]
        assert tuple(seen["shape"]) == tuple(tensor.shape)
        if tensor.numel() > 1:
            assert seen["address"] == tensor.data_ptr()
            strides = [(s, t) for s, t, n in zip(seen["stride"], tensor.stride(), tensor.shape, strict=True) if n > 1]
            assert all(s == t for s, t in strides)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "uint8", "int32", "int64", "bool"])
    def test_element_types(self, dtype: str) -> None:
        assert core.describe(torch.zeros(2, dtype=getattr(torch, dtype)))["dtype"] == dtype

    def test_a_tensor_that_requires_grad(self) -> None:
        assert core.describe(torch.zeros(2, requires_grad=True))["present"]

    def test_numpy_comes_by_the_same_door(self) -> None:
        array = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
        seen = core.describe(array)
        assert seen["address"] == array.__array_interface__["data"][0]
        assert tuple(seen["shape"]) == (3, 2)
        assert tuple(seen["stride"]) == (4, 2)

    def test_none_is_an_absent_tensor(self) -> None:
        assert not core.describe(None)["present"]

    def test_complex_is_refused_with_a_sentence(self) -> None:
        with pytest.raises(TypeError, match="unsupported element type"):
            core.describe(torch.zeros(2, dtype=torch.complex64))

    def test_seven_dimensions_are_refused_with_a_sentence(self) -> None:
        with pytest.raises(ValueError, match="7 dimensions, at most 6"):
            core.describe(torch.zeros(1, 1, 1, 1, 1, 1, 1))

    def test_what_is_no_tensor_is_refused(self) -> None:
        with pytest.raises(TypeError):
            core.describe([1.0, 2.0])

    def test_the_dlpack_capsule_door_gives_the_same(self) -> None:
        """torch before 2.11 has no C function table; hiding it takes the other path."""
        code = (
            "import torch, posekd.ops as ops\n"
            "from posekd.ops import library\n"
            "torch.manual_seed(0)\n"
            "x = torch.rand(2, 3, 8, 6).transpose(2, 3).requires_grad_()\n"
            "seen = library._core.describe(x)\n"
            "assert seen['address'] == x.data_ptr() and tuple(seen['stride']) == x.stride(), seen\n"
            "loss = ops.distill_loss(x, torch.rand(2, 3, 6, 8))\n"
            "loss.backward()\n"
            "print(loss.item(), x.grad.double().sum().item())\n"
        )
        assert in_fresh_python(code) == in_fresh_python(code, POSEKD_NO_DLPACK_C_API="1")


class TestBuild:
    def test_build_info(self) -> None:
        info = build_info()
        assert info["core"]
        assert re.match(r"(gcc|clang) \d+", info["compiler"])
        assert info["vector_level"] in info["vector_levels"].split(",")
        assert info["parallel"] in ("openmp", "threads")
        assert info["cuda"] is None or re.match(r"\d+\.\d+", info["cuda"])
        assert info["cuda_usable"] or info["cuda_problem"]

    @pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not here")
    def test_links_to_neither_openmp_nor_torch_nor_cuda(self) -> None:
        dynamic = subprocess.run(["readelf", "-d", core.__file__], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        allowed = re.compile(r"(libstdc\+\+|libgcc_s|libm|libc|libdl|libpthread|librt|ld-linux[^.]*)\.so\.\d+")
        assert needed
        assert all(allowed.fullmatch(name) for name in needed), needed

    def test_shares_torchs_threads(self) -> None:
        assert build_info()["parallel"] == "openmp"

    def test_without_the_core_ops_still_work_and_say_why(self) -> None:
        code = (
            "import warnings, torch\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    import posekd.ops as ops\n"
            "x = torch.rand(1, 2, 4, 4, requires_grad=True)\n"
            "ops.distill_loss(x, torch.rand(1, 2, 4, 4)).backward()\n"
            "print(x.grad is not None, any('POSEKD_REFERENCE_ONLY' in str(w.message) for w in caught))\n"
        )
        assert in_fresh_python(code, POSEKD_REFERENCE_ONLY="1") == "True True"


class TestThreads:
    def test_a_forked_child_never_hangs(self) -> None:
        """OpenMP's pool does not survive a fork; a child that waits for its threads would wait for ever."""
        code = (
            "import os, signal, torch\n"
            "from posekd.ops import distill_loss\n"
            "torch.set_num_threads(2)\n"
            "x, y = torch.rand(8, 17, 64, 48), torch.rand(8, 17, 64, 48)\n"
            "before = distill_loss(x, y).item()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    signal.alarm(30)\n"
            "    os._exit(0 if distill_loss(x, y).item() == before else 1)\n"
            "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        assert in_fresh_python(code) == "0"

    def test_in_a_dataloader_worker(self) -> None:
        class Losses(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return 4

            def __getitem__(self, index: int) -> torch.Tensor:
                return distill_loss(torch.full((2, 17, 32, 24), float(index)), torch.zeros(2, 17, 32, 24))

        loader = torch.utils.data.DataLoader(Losses(), batch_size=2, num_workers=1, multiprocessing_context="fork")
        here = torch.stack([Losses()[i] for i in range(4)])
        torch.testing.assert_close(torch.cat(list(loader)), here, rtol=0, atol=0)

    def test_from_many_python_threads(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        maps = [torch.rand(4, 17, 32, 24, generator=torch.Generator().manual_seed(i)) for i in range(8)]
        alone = [distill_loss(m, maps[0]).item() for m in maps]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda m: distill_loss(m, maps[0]).item(), maps))
        assert together == alone


def test_no_machine_specific_code_in_the_baseline_objects() -> None:
    """Every vector level is chosen at run time: forcing the lowest must work anywhere."""
    code = "from posekd.ops import build_info; print(build_info()['vector_level'])"
    assert in_fresh_python(code, POSEKD_VECTOR_LEVEL="baseline") == "baseline"


def test_package_is_typed() -> None:
    assert (Path(posekd.__file__).parent / "py.typed").exists()
