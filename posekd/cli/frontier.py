"""`posekd frontier CONFIG`: students of several widths and depths from one teacher, accuracy against time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.cli import command_parser, is_main_process

if TYPE_CHECKING:
    from posekd.engine.recipes.recipe import Recipe

EPILOG = """examples:
  posekd frontier mouse.yaml --run student --vary width=8,16,32 blocks=1,2
  posekd frontier mouse.yaml --run student --vary modules=[1],[1,1],[1,1,1] --train.epochs 100
Each combination is a run in a folder below OUT, trained by the recipe with its teacher. Killed and started again with
the same words, it goes on. When all are trained, they are measured on this machine in one sitting; OUT then holds
frontier.json and frontier.png. Without --vary: half of the student's width, its width and twice its width, each with 1
block a module and with as many as it has. Any key of the recipe can be overridden, as for `posekd train`."""


def main(argv: Sequence[str]) -> int:
    """Trains the students and shows what accuracy costs.

    Raises:
        ValueError: settings that the student does not have, or no validation data.
    """
    parser = command_parser(
        "frontier", epilog=EPILOG, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="a YAML file, or the name of a shipped recipe")
    add("--vary", nargs="+", metavar="KEY=V1,V2", help="settings of the student's network, and their values")
    add("--threads", type=int, metavar="N", help="CPU threads of the measurement (torch's own)")
    add("--device", default="auto", help="to measure on: cpu, cuda, cuda:1... (default: the GPU if there is one)")
    options, overrides = parser.parse_known_args(argv)
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {options.threads}")

    from posekd.engine.frontier import train_frontier, variants
    from posekd.engine.recipes.recipe import read_recipe

    recipe = read_recipe(options.config, overrides)
    recipes = variants(recipe, _default(recipe) if options.vary is None else _values(options.vary))

    def tell(name: str, folder: Path) -> None:
        if is_main_process():
            number = list(recipes).index(name) + 1
            print(f"posekd: student {number} of {len(recipes)}, {name}: {folder}", file=sys.stderr)

    scores = train_frontier(recipes, tell)
    if is_main_process():
        _show(recipe, recipes, scores, options)
    return 0


def _show(recipe: Recipe, recipes: dict[str, Recipe], scores: dict[str, float], options: argparse.Namespace) -> None:
    """Measures the students; prints, draws and writes."""
    import torch
    from rich.console import Console

    from posekd.engine.build import pick_device
    from posekd.engine.frontier import best_of, measure_frontier, write_points
    from posekd.engine.threads import oversubscribed, using_threads
    from posekd.viz.frontier import Row, plot_frontier, print_frontier

    device = pick_device(options.device)
    with using_threads(options.threads):
        threads = torch.get_num_threads()
        where = (
            f"{threads} CPU thread{'s' * (threads > 1)}" if device.type == "cpu" else torch.cuda.get_device_name(device)
        )
        told = oversubscribed(threads) if device.type == "cpu" else ""
        points = measure_frontier(recipes, scores, device)
    best = best_of(points)
    rows = [
        Row(
            p.name, p.score, (1e3 * p.latency.low, 1e3 * p.latency.median, 1e3 * p.latency.high),
            p.params, p.macs, p.name in best,
        )
        for p in points
    ]  # fmt: skip
    folder = Path(recipe.out)
    path = write_points(points, folder, where)
    print_frontier(rows, points[0].score_name, Console(), f"{recipe.student.name} on {where}, after the last step")
    if told:
        print(f"note: {told}")
    plot_frontier(rows, points[0].score_name, folder / "frontier.png", f"{recipe.student.name}, {where}")
    print("one run each: differences as small as those between seeds mean nothing (`posekd train --seeds`)")
    print(f"all numbers: {path}, picture: {folder / 'frontier.png'}")


def _values(words: Sequence[str]) -> dict[str, list[Any]]:
    """`width=8,16` as `{"width": [8, 16]}`; values are YAML."""
    import yaml

    found: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        try:
            values = yaml.safe_load(f"[{text}]") if equals and text else None
        except yaml.YAMLError:
            values = None
        if not values:
            raise ValueError(f"--vary takes KEY=VALUE,VALUE..., e.g. width=8,16, got {word!r}")
        if key in found:
            raise ValueError(f"--vary names {key} twice: give all its values after one `{key}=`")
        found[key] = values
    return found


def _default(recipe: Recipe) -> dict[str, list[Any]]:
    """Half the width, the width and twice the width; one block, and as many as the student has."""
    from posekd.models.registry import settings_of

    settings = settings_of(recipe.student.name, recipe.student.overrides)
    width, blocks = settings.get("width"), settings.get("blocks")
    if not isinstance(width, int) or width < 2:
        raise ValueError(f"{recipe.student.name} has no width to vary: say what with --vary KEY=V1,V2")
    depths = {"blocks": sorted({1, blocks})} if isinstance(blocks, int) else {}
    return {"width": [width // 2, width, 2 * width], **depths}
