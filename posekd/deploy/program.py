"""Networks as programs of `torch.export` (`.pt2`): the same graph as the ONNX file, run by PyTorch."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posekd.deploy.export import Precision, facts_of, quietly, trace, write_beside
from posekd.deploy.exported import ExportedFinder
from posekd.deploy.facts import Facts, from_texts, to_texts
from posekd.deploy.forms import FORMS
from posekd.deploy.load import Ready
from posekd.deploy.plain import STAND_INS
from posekd.files import write_atomically
from posekd.paradigms import paradigm_of

FACTS = "posekd.json"
"""The entry of the file that says what it is."""
COMPILED = "posekd_facts"
"""The same in the metadata of a compiled package."""


def export_program(
    found: Ready, path: str | os.PathLike[str], precision: Precision = "fp32", compiled: bool = False
) -> Facts:
    """Writes a `.pt2` file that has everything between an image and keypoints in it, as `export_onnx` does.

    Args:
        found: the network; it is not changed.
        path: the file, whole or not at all.
        precision: `fp32`, or `fp16` for the network's weights and arithmetic.
        compiled: compile it for this machine's processor (AOTInductor), which needs a C++ compiler here and none where
            it runs; without, PyTorch runs the graph operation by operation.

    Returns:
        What the file says of itself.

    Raises:
        ValueError: settings that a graph cannot follow, or int8.
        RuntimeError: there is no C++ compiler.
        OSError: the file cannot be written.
    """
    if precision == "int8":
        raise ValueError("int8 is a precision of ONNX files: export with --format onnx, or as fp32 or fp16")
    form = FORMS[paradigm_of(found.model).name]
    program = trace(found, form, precision == "fp16", STAND_INS)
    facts = facts_of(found, precision)
    texts = json.dumps(to_texts(facts))
    write_atomically(path, _compiled(program, texts) if compiled else _saved(program, texts))
    write_beside(form, path)
    return facts


def _saved(program: torch.export.ExportedProgram, texts: str) -> bytes:
    file = io.BytesIO()
    with quietly():
        torch.export.save(program, file, extra_files={FACTS: texts})
    return file.getvalue()


def _compiled(program: torch.export.ExportedProgram, texts: str) -> bytes:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    file = io.BytesIO()
    try:
        with quietly(), torch.no_grad():
            aoti_compile_and_package(
                program, package_path=file, inductor_configs={"aot_inductor.metadata": {COMPILED: texts}}
            )
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "compiling needs a C++ compiler (g++, or the one that CXX names), and there is none here: install one, or "
            "export without --compile"
        ) from error
    return file.getvalue()


class ProgramFinder(ExportedFinder):
    """A network that `posekd export --format pt2` wrote, on the CPU.

    Args:
        path: the `.pt2` file.
        batch_size: people that go through the network together, at most.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or not one of posekd's.
    """

    def __init__(self, path: str | os.PathLike[str], batch_size: int = 16) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no exported network at {path}")
        self.program, texts = _open(path)
        super().__init__(from_texts(texts, str(path)), self.ask, batch_size)
        self.outputs = FORMS[self.facts.paradigm.name].outputs

    def ask(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs by name."""
        inputs = [torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()]
        with torch.no_grad():
            outputs = self.program(*inputs)
        listed = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return {name: value.numpy() for name, value in zip(self.outputs, listed, strict=True)}


def _open(path: str | os.PathLike[str]) -> tuple[Any, Mapping[str, str]]:
    """A program that can be called, and its metadata. Nothing is unpickled but tensors; a compiled one is machine code.

    Raises:
        ValueError: not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            compiled = any("/aotinductor/" in name for name in archive.namelist())
        with quietly():
            return _open_compiled(path) if compiled else _open_saved(path)
    except Exception as error:  # torch's errors share no class
        raise ValueError(f"{path} cannot be opened as a program of torch.export: {error}") from error


def _open_saved(path: str | os.PathLike[str]) -> tuple[Any, Mapping[str, str]]:
    extra = {FACTS: ""}
    with _only_tensors():
        program = torch.export.load(path, extra_files=extra)
    return program.module(), json.loads(extra[FACTS] or "{}")


def _open_compiled(path: str | os.PathLike[str]) -> tuple[Any, Mapping[str, str]]:
    from torch._inductor import aoti_load_package

    program = aoti_load_package(str(path))
    return program, json.loads(program.get_metadata().get(COMPILED, "{}"))


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Within the block `torch.load` unpickles nothing but tensors, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
