"""The examples in the docstrings of what a user calls: each op and module has one, and each gives what it says."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from typing import Any

import pytest

from posekd import models, nn, ops
from posekd.paradigms import inference

PUBLIC = {
    **{f"ops.{name}": getattr(ops, name) for name in ops.__all__},
    **{f"nn.{name}": getattr(nn, name) for name in nn.__all__},
    "models.create_model": models.create_model,
    "paradigms.inference.find_people": inference.find_people,
}


def examples_of(thing: Callable[..., Any]) -> list[doctest.DocTest]:
    """The examples of a function, or of a class and its methods; they import what they use, as a reader must."""
    found = doctest.DocTestFinder().find(thing, thing.__name__, importlib.import_module(thing.__module__), globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs_and_gives_what_it_says(name: str) -> None:
    tests = examples_of(PUBLIC[name])
    assert tests, f"{name} has no example: add an `Examples:` section with `>>>` lines to its docstring"
    runner = doctest.DocTestRunner()
    for test in tests:
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert runner.failures == 0, "".join(said)


def test_an_example_that_gives_something_else_fails() -> None:
    def add(a: int, b: int) -> int:
        """A sum.

        Examples:
            >>> 1 + 1
            3
        """
        return a + b

    runner = doctest.DocTestRunner()
    runner.run(examples_of(add)[0], out=lambda text: None)
    assert runner.failures == 1
