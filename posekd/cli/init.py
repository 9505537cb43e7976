"""`posekd init DATA`: one commented recipe for teacher and student that fits the data, and the commands to run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from posekd.cli import command_parser

EPILOG = """DATA is a folder with train.json and val.json, as `posekd split` writes it, or a label file in COCO's form.
  posekd init data                           # writes recipe.yaml
  posekd init data --budget medium --out mouse.yaml"""


def main(argv: Sequence[str]) -> int:
    """Writes the recipe and prints the commands.

    Raises:
        FileExistsError: the recipe is there already.
        ValueError, FileNotFoundError: labels or images that do not fit.
    """
    from posekd.data import CocoKeypoints
    from posekd.data.inspection import gather_facts
    from posekd.data.own.find import find_data
    from posekd.engine.planning import BUDGETS, fit_latency, make_plan
    from posekd.engine.recipe_text import recipe_text
    from posekd.engine.recipes.recipe import read_recipe
    from posekd.files import check_writable, write_atomically

    parser = command_parser("init", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", metavar="DATA", help="folder with train.json (and val.json), or a label file")
    add("--val", metavar="FILE", help="labels to validate on (default: val.json of the folder)")
    add("--images", metavar="DIR", help="folder of the images (looked for by itself)")
    add("--budget", choices=BUDGETS, default="small", help="how much may be computed (small: a few CPU cores)")
    add(
        "--latency",
        metavar="TIME",
        help="choose the largest student that takes no longer for an image here: 5ms, 0.02s",
    )
    add("--out", metavar="FILE", default="recipe.yaml", help="the recipe (recipe.yaml)")
    add("--runs", metavar="DIR", help="folder of the runs (runs/NAME OF THE RECIPE)")
    options = parser.parse_args(argv)

    limit = None if options.latency is None else _seconds(options.latency)
    file = Path(options.out)
    if file.exists():
        raise FileExistsError(f"{file} is there already: name another with --out, or remove it")
    check_writable(file)
    own = find_data(options.data, options.images, options.val)
    source = CocoKeypoints(own.train)
    facts = gather_facts(source.records, own.train)
    plan = make_plan(source.records, facts, options.budget)
    if limit is not None:
        plan = fit_latency(plan, facts.skeleton.num_keypoints, limit)
    runs = options.runs or f"runs/{file.stem}"
    write_atomically(file, recipe_text(plan, facts, own.train, own.val, runs, str(file)))
    read_recipe(str(file), ["--run", "student"])  # what was written can be read
    height, width = plan.size
    print(
        f"{file}: {plan.teacher[0]} teaches {plan.student[0]}, input {height} x {width} (height x width), "
        f"{plan.epochs} epochs of {len(source.records)} people, batch {plan.batch}"
    )
    if "student" in plan.reasons:
        print(f"the student takes {plan.reasons['student']}")
    if not plan.flip:
        print(f"note: no mirror images: {plan.why_flip}")
    if own.val is None:
        print("note: no labels to validate on were given: the recipe holds out 15 % of these images (`hold_out`)")
    print("\nnow run")
    print(f"  posekd train {file} --run teacher")
    print(f"  posekd train {file} --run student")
    print(f"  posekd eval {runs}/student")
    return 0


def _seconds(text: str) -> float:
    """A time such as `5ms` or `0.02s`, in seconds.

    Raises:
        ValueError: none such.
    """
    for unit, factor in (("ms", 1e-3), ("s", 1.0)):
        if text.endswith(unit):
            try:
                value = float(text.removesuffix(unit)) * factor
            except ValueError:
                break
            if value > 0:
                return value
    raise ValueError(f"--latency is a time such as 5ms or 0.02s, got {text!r}")
