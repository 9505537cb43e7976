"""`posekd bench [NAME] ...`: the microbenchmarks of the kernels."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import posekd
from posekd.cli import command_parser


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
    """Runs one benchmark, or all of them one after another; further words go to it."""
    known = benchmarks()
    parser = command_parser("bench", epilog=f"benchmarks: {', '.join(sorted(known))}")
    parser.add_argument("name", nargs="?", help="which benchmark; all without")
    options, rest = parser.parse_known_args(argv)
    if options.name is not None and options.name not in known:
        raise ValueError(f"there is no benchmark {options.name!r}; there are {', '.join(sorted(known))}")
    for name in [options.name] if options.name else sorted(known):
        importlib.import_module(known[name]).main(rest)
    return 0
