"""`posekd train CONFIG`: trains a student by a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posekd.cli import command_parser, is_main_process

if TYPE_CHECKING:
    from posekd.engine.recipes.recipe import Recipe

EPILOG = """Any key of the recipe can be overridden: --optim.lr 0.0005 --train.precision bf16 --out runs/mine.
--show prints the resolved recipe, every key spelt out, and trains nothing.
--run NAME chooses one of the runs of a recipe that has several (`posekd init` writes such).
--seeds 0 1 2 trains with each seed and prints mean, spread and interval: no claim of a gain without it.
On N GPUs: torchrun --nproc-per-node N -m posekd train CONFIG (docs/many_gpus.md)."""


def main(argv: Sequence[str]) -> int:
    """Reads and checks the recipe, then trains."""
    parser = command_parser("train", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("config", help="a YAML file, or the name of a shipped recipe (mapd/elpn_v1_coco_256x192)")
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on from the newest checkpoint of the run's folder, or from a file"
    )
    parser.add_argument("--show", action="store_true", help="print the resolved recipe and stop")
    parser.add_argument(
        "--seeds", metavar="N", type=int, nargs="+", help="one run for each, in OUT/seedN; goes on where it stopped"
    )
    options, overrides = parser.parse_known_args(argv)

    from posekd.engine.recipes.recipe import read_recipe, recipe_to_dict

    recipe = read_recipe(options.config, overrides)
    if options.show:
        import yaml

        print(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), end="")
        return 0

    if options.seeds is not None:
        if options.resume is not None:
            raise ValueError("--seeds goes on where it stopped by itself: give no --resume with it")
        return _train_seeds(recipe, options.seeds)

    from posekd.engine.train import train
    from posekd.engine.training.checkpoint import list_checkpoints
    from posekd.engine.training.loop import main_score

    if options.resume == "auto" and is_main_process() and not list_checkpoints(Path(recipe.out) / "checkpoints"):
        print(f"posekd: {recipe.out} holds no checkpoint: the run begins at step 0", file=sys.stderr)

    scores = train(recipe, resume=options.resume)
    if is_main_process():
        name, score = main_score(scores) if scores else ("", 0.0)
        print(f"done: {recipe.out}" + (f", {name} {score:.3f} after the last step" if scores else ""))
    return 0


def _train_seeds(recipe: Recipe, seeds: Sequence[int]) -> int:
    """Trains with each seed and prints how much the scores differ."""
    from rich.console import Console

    from posekd.engine.seeds import RESULTS, train_seeds
    from posekd.viz.judging import print_seeds

    def tell(seed: int, folder: Path) -> None:
        if is_main_process():
            print(f"posekd: seed {seed}: {folder}", file=sys.stderr)

    scores = train_seeds(recipe, seeds, tell)
    if is_main_process():
        shown = {seed: dict(list(row.items())[:5]) for seed, row in scores.items()}
        print_seeds(shown, Console(), f"{recipe.out}, after the last step of {len(seeds)} seeds")
        print(f"all numbers: {Path(recipe.out) / RESULTS}")
    return 0
