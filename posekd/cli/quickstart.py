"""`posekd quickstart`: a student with and without its teacher, on synthetic people, in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser

EPILOG = """DIR then holds results.json, curves.png, poses.png, and a folder for each of the three runs with its
recipe, log and weights. Recipe keys can be overridden for all three: --train.device cuda. (The student that has
labels alone trains more epochs, for as many steps.)"""


def main(argv: Sequence[str]) -> int:
    """Reads the options and runs `engine.quickstart`."""
    parser = command_parser("quickstart", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--out", metavar="DIR", default="quickstart", help="where to write (default: quickstart)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of pictures, weights and order (default: 0)")
    options, overrides = parser.parse_known_args(argv)
    if options.seed < 0:
        raise ValueError(f"--seed must not be negative, got {options.seed}")

    from posekd.engine.quickstart import quickstart

    quickstart(Path(options.out), options.seed, overrides)
    return 0
