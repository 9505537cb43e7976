"""`posekd train CONFIG`: trains a student by a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser, is_main_process

EPILOG = """Any key of the recipe can be overridden: --optim.lr 0.0005 --train.precision bf16 --out runs/mine.
--show prints the resolved recipe, every key spelt out, and trains nothing.
On N GPUs: torchrun --nproc-per-node N -m posekd train CONFIG (docs/many_gpus.md)."""


def main(argv: Sequence[str]) -> int:
    """Reads and checks the recipe, then trains."""
    parser = command_parser("train", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("config", help="a YAML file, or the name of a shipped recipe (mapd/elpn_v1_coco_256x192)")
    parser.add_argument(
        "--resume", metavar="auto|PATH", help="go on from the newest checkpoint of the run's folder, or from a file"
    )
    parser.add_argument("--show", action="store_true", help="print the resolved recipe and stop")
    options, overrides = parser.parse_known_args(argv)

    from posekd.engine.recipes.recipe import read_recipe, recipe_to_dict

    recipe = read_recipe(options.config, overrides)
    if options.show:
        import yaml

        print(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False), end="")
        return 0

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
