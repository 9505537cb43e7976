"""`posekd inspect DATA`: what labelled data hold and what looks wrong in them, before anything is trained."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from posekd.cli import command_parser

if TYPE_CHECKING:
    from posekd.data import PoseSource
    from posekd.engine.recipes.recipe import Recipe

EPILOG = """DATA is a label file in COCO's form, a folder with train.json and val.json (`posekd split` writes it), or a
recipe, whose keys can be overridden as for train. Without a recipe the pictures are those of `posekd init`'s.
Warnings are for you to judge. Training refuses boxes that look like corners, coordinates that look divided by the
image's size, and images that are in both splits, until the recipe says `acknowledged: [...]`.

examples:
  posekd inspect mouse.json --draw crops.png
  posekd inspect recipe.yaml --run student --draw crops.png"""


JUDGED = ("no OKS sigmas", "as corners x1", "have no partner")
"""In warnings of opening data that a judgement repeats."""


def main(argv: Sequence[str]) -> int:
    """Prints facts and judgements of each split, and draws labelled inputs.

    Raises:
        ValueError, FileNotFoundError: labels, images or a recipe that cannot be read.
    """
    parser = command_parser(
        "inspect", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a label file, a folder with train.json, or a recipe")
    add(
        "--val",
        metavar="FILE",
        help="labels to validate on, looked at too and compared (default: val.json of the folder)",
    )
    add("--images", metavar="DIR", help="folder of the images (looked for by itself)")
    add("--draw", metavar="FILE", help="write a sheet of labelled inputs, plain and augmented (.png, .jpg)")
    add("--count", type=int, default=12, metavar="N", help="people (images) on the sheet (12)")
    options, overrides = parser.parse_known_args(argv)

    from posekd.data.inspection import same_images, shared
    from posekd.engine.examine import draw_inputs
    from posekd.files import check_writable
    from posekd.models import create_model

    if options.draw is not None:
        check_writable(options.draw)
    console = Console()
    recipe = _recipe(options, overrides)
    paradigm = recipe.paradigm
    flip = max(recipe.augmentation.flip, recipe.augmentation.vertical_flip)
    train = _open(recipe.train_data, paradigm.training_images, console)
    _tell(train, recipe.train_data, str(getattr(recipe.train_data, "annotations", "train_data")), flip, console)
    if recipe.val_data is not None:
        val = _open(recipe.val_data, paradigm.evaluation_images, console)
        console.print()
        _tell(val, recipe.val_data, str(getattr(recipe.val_data, "annotations", "val_data")), 0.0, console)
        found = shared(same_images(train, val), train.records.num_images)
        console.print()
        for judgement in found:
            same = recipe.val_data == recipe.train_data  # which training only notes
            _say(console, f"{'look at this' if same else 'refused'}: {judgement}")
        if not found:
            _say(console, "no image of the one is, byte for byte, in the other.")
    if options.draw is not None:
        import torch

        from posekd.viz.crops import save_picture

        with torch.device("meta"):
            spec = create_model(recipe.student.name, 1, **recipe.student.overrides).spec
        save_picture(draw_inputs(recipe, train, spec, options.count), options.draw)
        _say(console, f"\n{options.draw}: look whether every number sits where its name says")
    return 0


def _recipe(options: argparse.Namespace, overrides: Sequence[str]) -> Recipe:
    """The recipe that was named, or the one that `posekd init` would write for the data."""
    from posekd.engine.recipes.configs import list_configs
    from posekd.engine.recipes.recipe import read_recipe

    if Path(options.data).suffix in (".yaml", ".yml") or options.data in list_configs():
        return read_recipe(options.data, overrides)
    if overrides:
        raise ValueError(f"{overrides[0]} is no option of inspect (keys of a recipe can be overridden, if DATA is one)")
    import yaml

    from posekd.data import CocoKeypoints
    from posekd.data.inspection import gather_facts
    from posekd.data.own.find import find_data
    from posekd.engine.planning import make_plan
    from posekd.engine.recipe_text import recipe_text
    from posekd.engine.recipes.recipe import pick_run, recipe_from_dict

    own = find_data(options.data, options.images, options.val)
    with warnings.catch_warnings():  # they come again when the data are opened to be looked at
        warnings.simplefilter("ignore")
        records = CocoKeypoints(own.train).records
    facts = gather_facts(records, own.train)
    text = recipe_text(make_plan(records, facts), facts, own.train, own.val, "runs", "recipe.yaml")
    return recipe_from_dict(pick_run(yaml.safe_load(text), ["--run", "alone"])[0])


def _open(settings: Any, keep: Any, console: Console) -> PoseSource:
    """The dataset; what opening it warns of is part of the report."""
    from posekd.engine.recipes.datasets import open_dataset

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_dataset(settings, keep)
    for warning in caught:
        if not any(words in str(warning.message) for words in JUDGED):
            _say(console, f"reading it: {warning.message}")
    return source


def _tell(source: PoseSource, settings: Any, title: str, flip: float, console: Console) -> None:
    from posekd.data.inspection import gather_facts, judge
    from posekd.viz.inspection import print_facts

    facts = gather_facts(source.records, settings)
    found = judge(source, facts, flip=flip, orientation=getattr(settings, "apply_orientation", None) is False)
    print_facts(facts, found, console, title)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
