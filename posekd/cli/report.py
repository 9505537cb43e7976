"""`posekd report RUN...`: one page of HTML about runs: curves, tables, errors, pictures, cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.cli import command_parser
from posekd.files import check_writable, write_atomically

if TYPE_CHECKING:
    from posekd.data import LoaderSettings
    from posekd.engine.recipes.recipe import Recipe
    from posekd.engine.report import Judged, Subject

EPILOG = """The page needs nothing beside itself: pictures are within it, and it opens offline. All networks are
evaluated on the validation data of the first run. The teacher of the first that has one is shown beside them, unless
it is among the runs.

examples:
  posekd report runs/student                          # the student and its teacher
  posekd report runs/teacher runs/alone runs/student -o report.html
  posekd report runs/student --images test --annotations test.json"""


def main(argv: Sequence[str]) -> int:
    """Evaluates the networks, and writes the page.

    Raises:
        ValueError, FileNotFoundError: a run without a checkpoint or card, or data that do not fit.
        OSError: the page cannot be written.
    """
    options = _parser().parse_args(argv)
    check_writable(options.out)
    if options.people < 0:
        raise ValueError(f"--people is a number of people, 0 or more, got {options.people}")

    from posekd.data import LoaderSettings
    from posekd.engine.build import pick_device
    from posekd.engine.report_page import report_page

    device = pick_device(options.device or "auto")
    loader = LoaderSettings(options.batch_size, options.workers, on_bad_image="skip")
    judged, remarks = _judge(options, loader, device)
    title = options.title or "posekd: " + ", ".join(one.subject.name for one in judged)
    write_atomically(options.out, report_page(title, judged, remarks, options.people))
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(f"{options.out}: {len(judged)} networks, {Path(options.out).stat().st_size / 2**20:.1f} MiB")
    return 0


def _judge(options: argparse.Namespace, loader: LoaderSettings, device: Any) -> tuple[list[Judged], list[str]]:
    """The networks, evaluated; and remarks on what could not be shown."""
    from dataclasses import replace

    from posekd.cli.eval import open_data, recipe_of
    from posekd.cli.progress import Bar
    from posekd.deploy.load import find_card
    from posekd.engine.report import judge_subject, teacher_subject
    from posekd.paradigms import paradigm_of

    subjects = [_subject(run, name) for run, name in zip(options.run, _names(options.run), strict=True)]
    _, card = find_card(options.run[0])
    recipe = recipe_of(card)
    data = _data(options, recipe)
    first = open_data(data, paradigm_of(subjects[0].model).evaluation_images, card)
    remarks = []
    taught = _first_taught(subjects)
    if taught is not None and not options.no_teacher:
        place, its_recipe = taught
        given = _teacher_among(its_recipe, options.run)
        if given is None:
            teacher, remark = teacher_subject(its_recipe, first.records.skeleton, subjects[place].name)
            subjects = [*([teacher] if teacher is not None else []), *subjects]
            remarks += [remark] if remark else []
        else:
            subjects[given] = replace(subjects[given], teaches=True)
    judged = []
    for subject in subjects:
        source = open_data(data, paradigm_of(subject.model).evaluation_images, card)
        own = replace(loader, padding=subject.padding)
        with Bar(f"evaluating {subject.name}") as on_batch:
            judged.append(judge_subject(subject, source, own, device, not options.no_latency, on_batch))
    return judged, remarks


def _subject(run: str, name: str) -> Subject:
    from posekd.deploy.load import find_card, ready
    from posekd.engine.progress import read_log
    from posekd.engine.report import Subject

    found = ready(run)
    file, card = find_card(run)
    assert file is not None
    log = file.parent / "log.jsonl"
    records = read_log(log) if log.is_file() else []
    return Subject(name, found.model, found.settings, found.padding, card or {}, records)


def _names(runs: Sequence[str]) -> list[str]:
    """Short names that differ: of the folder, or of as many folders as it takes."""
    paths = [Path(run).resolve() for run in runs]
    paths = [path.parent if path.suffix else path for path in paths] if len(set(paths)) == len(paths) else paths
    depth = 1
    while depth < 6:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [f"{name} {i + 1}" for i, name in enumerate(names)]


def _data(options: argparse.Namespace, recipe: Recipe | None) -> Any:
    """The dataset that the options describe, or the first run's."""
    from dataclasses import replace

    from posekd.data.sources.coco import CocoSettings

    given = {key: vars(options)[key] for key in ("images", "annotations") if vars(options)[key] is not None}
    own = recipe.val_data if recipe is not None else None
    if len(given) == 2:
        return replace(own, **given) if isinstance(own, CocoSettings) else CocoSettings(**given)
    if given:
        raise ValueError("--images and --annotations describe a dataset together: give both")
    if own is None:
        raise ValueError(f"{options.run[0]} was not validated on any data: give --images and --annotations")
    return own


def _first_taught(subjects: Sequence[Subject]) -> tuple[int, Recipe] | None:
    """Place and recipe of the first run that has learnt from a teacher."""
    from posekd.cli.eval import recipe_of

    for i, subject in enumerate(subjects):
        recipe = recipe_of(subject.card) if (subject.card.get("recipe") or {}).get("teacher") else None
        if recipe is not None and recipe.method_type.taught:
            return i, recipe
    return None


def _teacher_among(recipe: Recipe, runs: Sequence[str]) -> int | None:
    """The run that the teacher is of: its file is in that run's folder (whichever was saved: best or last)."""
    from posekd.models.weights import find_checkpoint

    weights = recipe.teacher.weights if recipe.teacher is not None else None
    if weights is None:
        return None
    folder = Path(weights).resolve().parent
    files = [find_checkpoint(run) for run in runs]
    return next((i for i, file in enumerate(files) if file is not None and file.resolve().parent == folder), None)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("report", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", nargs="+", help="folders of runs, or .safetensors files with their cards")
    add("-o", "--out", default="report.html", metavar="FILE", help="the page (report.html)")
    add("--title", help="above the page (default: the names of the networks)")
    add("--images", metavar="DIR", help="other data than the first run's: the folder of images")
    add("--annotations", metavar="FILE", help="and the labels, in COCO's format")
    add("--people", type=int, default=6, metavar="N", help="people shown in each section of pictures (6)")
    add("--no-teacher", action="store_true", help="leave out the teacher, unless it is among the runs")
    add("--no-latency", action="store_true", help="measure no latency")
    add("--batch-size", type=int, default=32, metavar="N", help="rows per batch (32)")
    add("--workers", type=int, default=2, metavar="N", help="decoding processes (2)")
    add("--device", help="cpu, cuda, cuda:1... (default: the GPU if there is one)")
    return parser
