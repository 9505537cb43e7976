"""`posekd cache-teacher CONFIG`: runs a recipe's teacher once and stores its heatmaps for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser
from posekd.files import check_writable

EPILOG = """Any key of the recipe can be overridden, as for train: --teacher.weights FILE --train.device cuda.
Then train with --train.teacher_cache DIR: the cached heatmaps are warped in the same way as each augmented image."""


def main(argv: Sequence[str]) -> int:
    """Reads the recipe, runs the teacher, and prints the size and error of the cache."""
    parser = command_parser("cache-teacher", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("config", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "--cache", metavar="DIR", help="where to write (default: teacher_cache in the folder of the run)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        help="factor by which cached crops show more than training crops (default 1.1; 1 with --tokens)",
    )
    parser.add_argument(
        "--tokens", action="store_true", help="store a token teacher's tokens too, for training without augmentation"
    )
    parser.add_argument(
        "--bits", type=int, choices=(8, 16), default=8, help="bits per stored value: 8, or 16 for float16 (default 8)"
    )
    options, overrides = parser.parse_known_args(argv)

    from posekd.cli.progress import Bar
    from posekd.engine.recipes.recipe import read_recipe
    from posekd.engine.teacher_cache import MARGIN, cache_teacher

    recipe = read_recipe(options.config, overrides)
    folder = Path(options.cache or Path(recipe.out) / "teacher_cache")
    check_writable(folder / "maps.bin")
    margin = options.margin or (1.0 if options.tokens else MARGIN)
    with Bar("running the teacher") as on_batch:
        card = cache_teacher(recipe, folder, margin=margin, bits=options.bits, tokens=options.tokens, on_batch=on_batch)
    size = card.persons * card.bytes_per_person / 2**20
    print(
        f"{card.persons} persons, {card.bytes_per_person:,} bytes each ({size:,.0f} MiB) in {folder}; "
        f"largest error {card.error:.2g}"
    )
    print(f"train with --train.teacher_cache {folder}")
    return 0
