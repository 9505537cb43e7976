"""`posekd bench [NAME] ...`: the kernels' microbenchmarks; `bench train CONFIG`: a training loop; `bench calls`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import posekd

# Benchmarks with options of their own: word -> module beside the folder of the kernels'.
APART = {"train": "train_throughput", "calls": "calls"}


def benchmarks() -> dict[str, str]:
    """Name -> module of each benchmark: in the installed package, or beside it in a source tree."""
    package = Path(posekd.__file__).parent
    for folder, prefix in (
        (package / "benchmarks", "posekd.benchmarks"),
        (package.parent / "benchmarks", "benchmarks"),
    ):
        if (folder / "ops").is_dir():
            if prefix == "benchmarks" and str(folder.parent) not in sys.path:
                sys.path.insert(0, str(folder.parent))
            found = pkgutil.iter_modules([str(folder / "ops")])
            return {m.name: f"{prefix}.ops.{m.name}" for m in found if not m.name.startswith("_")}
    raise FileNotFoundError(f"the benchmarks are neither in {package} nor beside it: reinstall posekd")


def main(argv: Sequence[str]) -> int:
    """Runs the named benchmarks, or all of them, one after another; the options go to each."""
    known = benchmarks()
    if argv and argv[0] in APART:
        module = next(iter(known.values())).rsplit(".", 2)[0] + f".{APART[argv[0]]}"
        return int(importlib.import_module(module).main(argv[1:]))
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    names, rest = list(argv[:count]), list(argv[count:])
    if "-h" in rest or "--help" in rest:
        print("usage: posekd bench [NAME ...] [options]\n       posekd bench train CONFIG [options]")
        print("       posekd bench calls [options]\n")
        print(f"benchmarks (all without a name): {', '.join(sorted(known))}\n")
        importlib.import_module(known["distill_loss"]).main(["--help"])
    for name in names:
        if name not in known:
            raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(sorted(known))}")
    for name in names or sorted(known):
        importlib.import_module(known[name]).main(rest)
    return 0
