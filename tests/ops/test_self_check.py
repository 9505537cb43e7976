"""`posekd doctor` runs every op, forward and backward, against its definition; a wrong kernel is found."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posekd import ops
from posekd.cli import doctor, main
from posekd.ops import library
from posekd.ops.self_check import check_ops

CPU = torch.device("cpu")


class Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "posekd":
            self.names.add(func.name().split("::")[1].split(".")[0])
        return func(*args, **(kwargs or {}))


def test_every_public_op_is_checked_and_agrees():
    outcome = check_ops(CPU)
    assert outcome.failed == {}
    assert outcome.kernels
    public = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))} - {"build_info"}
    assert set(outcome.checked) == public
    assert outcome.seconds < 60


def test_every_registered_op_runs_its_derivatives_too():
    with Noted() as noted:
        check_ops(CPU)
    assert set(library._implementations) - noted.names == set()


def test_a_wrong_kernel_and_one_that_fails_are_named(monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(ops, "center_pool", lambda x: x * (1.0 if library._definitions_only else 1.01))
    monkeypatch.setattr(ops, "oks", broken)
    outcome = check_ops(CPU)
    assert set(outcome.failed) == {"center_pool", "oks"}
    assert "differs from its definition by 1.0e-02" in outcome.failed["center_pool"]
    assert outcome.failed["oks"] == "RuntimeError: no such instruction"
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "22 of 24 agree with their definitions" in out
    assert "2 ops are wrong here" in out
    assert "report what is wrong" in out


def test_a_core_that_is_older_than_the_sources_is_known(monkeypatch, capsys):
    def other(*args, **options):
        raise TypeError("oks(): incompatible function arguments. The following argument types are supported:")

    monkeypatch.setattr(ops, "oks", other)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "oks: the compiled core is of another version than these sources" in out
    assert "to do         install posekd again" in out
    assert "report what is wrong" not in out


def test_definitions_take_the_place_of_kernels():
    x = torch.rand(1, 1, 4, 4)
    with pytest.MonkeyPatch.context() as patch:

        def refuse():
            raise AssertionError("the core was asked")

        patch.setattr(library, "core", refuse)
        with library.definitions():
            ops.corner_pool(x, "top")
        with pytest.raises(AssertionError, match="the core was asked"):
            ops.corner_pool(x, "top")


def test_what_to_install_for_what_is_missing(monkeypatch, capsys):
    found = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    assert doctor.missing_packages() == [
        ("optional", "no transformers: pip install 'posekd[huggingface]', for ViTPose teachers")
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "POSEKD_CUDA=ON pip install ." in " ".join(doctor.advices({"core": True, "cuda": None}))
    assert "pip install --force-reinstall --no-deps posekd" in doctor.advices({"core": False})[0]
