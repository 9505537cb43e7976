"""`posekd eval`: scores a network, or a results file, by the metrics that the dataset names."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from posekd.cli import is_main_process
from posekd.cli.eval_options import (
    EvalOptions,
    data_settings,
    for_paradigm,
    inference_settings,
    read_options,
    refuse_settings,
    track_settings,
)
from posekd.cli.progress import Bar
from posekd.files import check_writable, write_atomically

if TYPE_CHECKING:
    from posekd.data import PoseSource
    from posekd.data.sources.coco import KeepImages
    from posekd.engine.judging import Verdict
    from posekd.engine.recipes.recipe import Recipe
    from posekd.engine.scoring import Report, Score
    from posekd.models.base import PoseModel


def main(argv: Sequence[str]) -> int:
    """Evaluates a network on a dataset, or scores a results file, and prints the tables.

    Under torchrun each process takes its share of the rows, and the first one prints and writes.

    Raises:
        ValueError: options that do not go together, or any input that does not fit.
        FileNotFoundError: a file or folder does not exist.
        OSError: an output cannot be written; where that shows only in the end, the tables are printed first.
    """
    from posekd.deploy.exported import is_exported

    options = read_options(argv)
    for file in filter(None, (options.results, options.report, options.curve) if is_main_process() else ()):
        folder = file is options.results and Path(file).is_dir() and _fills_folders(options)
        check_writable(Path(file) / "video.json" if folder else file)
    if options.draw is not None and is_main_process():
        check_writable(Path(options.draw) / "best.png")
    if options.compare is not None:
        _compare(options, *options.compare)
    elif options.score_only is not None:
        _score(options, options.score_only)
    elif options.model is not None and is_exported(options.model):
        _evaluate_exported(options, options.model)
    elif options.model is None:
        raise ValueError("give a model and --images to evaluate, or --score-only FILE to score a results file")
    else:
        _evaluate(options, options.model)
    return 0


def _fills_folders(options: EvalOptions) -> bool:
    """Whether results may be several files in a folder; yes where the run knows its dataset, which says so later."""
    from posekd.engine.recipes.datasets import DATASETS
    from posekd.engine.scoring import METRICS

    if options.dataset is None and "annotations" not in options.data:
        return True
    return METRICS[DATASETS[options.dataset or "coco"].metrics[0]].folder


def _score(options: EvalOptions, path: str) -> None:
    """`--score-only`: the tables of a results file."""
    if options.model is not None or "images" in options.data:
        raise ValueError("--score-only scores a results file: give no model and no --images with it")
    from posekd.engine.evaluate import score_file
    from posekd.engine.recipes.datasets import dataset_of

    data, _ = data_settings(options, None)
    dataset = dataset_of(data)
    _refuse_curve(options, dataset.metrics)
    scores, notes = score_file(dataset, data, Path(path))
    console = Console(quiet=not is_main_process())
    try:
        _write_files(options, scores, path)
    finally:  # a full disk must not cost the numbers
        _show(scores, console, path)
    if dataset.metrics[0] not in scores:
        raise ValueError(f"{path} cannot be scored: {'; '.join(notes)}")
    _say("; ".join(notes), console)


def _compare(options: EvalOptions, first: str, second: str) -> None:
    """`--compare`: two networks on the same data, and how certain their difference is."""
    from posekd.engine.judging import compare_reports
    from posekd.viz.judging import print_difference

    if options.model is not None or options.score_only is not None or options.draw is not None:
        raise ValueError(
            "--compare A B evaluates these two: give no other model, no --score-only and no --draw with it"
        )
    source, before = run_model(replace(options, results=None), first)
    other, after = run_model(replace(options, results=None), second)
    if not is_main_process():
        return
    if before.main is None or after.main is None:
        raise ValueError(f"nothing can be compared: {before.note or after.note}")
    if source.records.sample_ids.tolist() != other.records.sample_ids.tolist():
        raise ValueError(f"{first} and {second} have other validation data: say which with --images and --annotations")
    console = Console()
    _say(f"{first} -> {second}, on {len(source.records)} people", console, "")
    differences = compare_reports(source, before, after)
    for d in differences:
        print_difference(d.name, d.before, d.after, d.low, d.high, console)
    _say("the interval is over images; how much training seeds matter, `posekd train --seeds` says", console)
    if options.report is not None:
        values = {d.name: {"before": d.before, "after": d.after, "low": d.low, "high": d.high} for d in differences}
        write_atomically(options.report, json.dumps(values, indent=2) + "\n")


def _evaluate(options: EvalOptions, name: str) -> None:
    """Evaluates a network, then writes and prints."""
    from posekd.engine.evaluate import ResultsNotWrittenError

    try:
        source, report = run_model(options, name)
    except ResultsNotWrittenError as error:
        _tell(replace(options, results=None), error.report, name, None)
        raise
    _tell(options, report, name, source)


def run_model(options: EvalOptions, name: str) -> tuple[PoseSource, Report]:
    """Runs a network on its data, or on those that the options describe."""
    from posekd.data import LoaderSettings
    from posekd.deploy.load import find_card
    from posekd.engine import distributed
    from posekd.engine.build import pick_device
    from posekd.engine.evaluate import evaluate
    from posekd.engine.examine import examine
    from posekd.engine.recipes.datasets import dataset_of
    from posekd.models import paradigm_name
    from posekd.paradigms import PARADIGMS

    if options.weights_key is not None and options.weights is None:
        raise ValueError("--weights-key names an entry of the file that --weights gives: give both")
    file, card = find_card(name, options.weights)
    recipe = recipe_of(card)
    family = card.get("model", {}).get("family") if card else name
    paradigm = PARADIGMS[paradigm_name(str(family))]
    options = for_paradigm(options, paradigm)
    data, changes = data_settings(options, recipe)
    _refuse_curve(options, dataset_of(data).metrics)
    settings, more = inference_settings(options, paradigm, recipe)
    source = open_data(data, paradigm.evaluation_images, card if "sigmas" not in options.data else None)
    acknowledged = [*options.acknowledge, *(recipe.acknowledged if recipe is not None else ())]
    for keypoint in options.pck_pair or ():
        if keypoint not in source.records.skeleton.keypoints:
            names = ", ".join(source.records.skeleton.keypoints)
            raise ValueError(f"--pck-pair: {keypoint!r} is not among the keypoints {names}")
    known = bool((card or {}).get("skeleton")) and "sigmas" not in options.data
    examine(source, data, "data", acknowledged, card=known)
    tracking, followed = track_settings(options, recipe, source.records.videos is not None)
    network = _open_model(name, file, card, options, source.records.skeleton.num_keypoints)
    padding = options.padding or (recipe.loader.padding if recipe is not None else LoaderSettings.padding)
    if recipe is not None and padding != recipe.loader.padding:
        more.append(f"padding: {padding}, where the checkpoint's run had {recipe.loader.padding}")
    _say_settings(name, recipe, [*changes, *more, *followed])
    place = pick_device(options.device or "auto")
    network.to(place)
    loader = LoaderSettings(
        options.batch_size,
        options.workers,
        pin_memory=True,
        on_bad_image="skip" if options.on_bad_image == "skip" else "refuse",
        padding=padding,
    )
    with distributed.group(place), Bar("evaluating") as on_batch:
        report = evaluate(
            network,
            source,
            settings,
            loader=loader,
            results_file=options.results,
            on_batch=on_batch,
            tracking=tracking,
        )
    return source, report


def _evaluate_exported(options: EvalOptions, name: str) -> None:
    """An exported network, whose settings are in its graph."""
    from posekd.deploy.exported import open_exported
    from posekd.engine.evaluate import refuse_unfit, report_people
    from posekd.tracking import refuse_blind

    finder = open_exported(name, options.batch_size)
    paradigm, settings = finder.facts.paradigm, finder.settings
    refuse_settings(name, vars(options), options.inference)
    options = for_paradigm(options, paradigm)
    data, _ = data_settings(options, None)
    facts = {"skeleton": asdict(finder.skeleton)} if "sigmas" not in options.data else None
    source = open_data(data, paradigm.evaluation_images, facts)
    refuse_unfit(source, paradigm.crops_boxes, options.results)
    _refuse_curve(options, source.records.metrics)
    tracking, _ = track_settings(options, None, source.records.videos is not None)
    refuse_blind(tracking, finder.look)
    start = time.perf_counter()
    with Bar("evaluating") as on_image:
        found = finder.find_in(source, on_image)
    count = len(source.records) if paradigm.crops_boxes else source.records.num_images
    report = report_people(
        source,
        found,
        paradigm,
        settings,
        start=start,
        count=count,
        results_file=options.results,
        tracking=tracking,
        look=finder.look,
    )
    _tell(options, report, name, source)


def open_data(data: Any, keep_images: KeepImages, card: Mapping[str, Any] | None) -> PoseSource:
    """The dataset, with the OKS sigmas in a checkpoint's card where its keypoints are those of the run, by name."""
    from posekd.engine.recipes.datasets import open_dataset
    from posekd.names import match

    skeleton = (card or {}).get("skeleton")
    with warnings.catch_warnings():
        if skeleton is not None:  # what the label file would need is in the card
            if getattr(data, "keypoints", ()) is None:
                data = replace(data, keypoints=list(skeleton["keypoints"]))
            warnings.filterwarnings("ignore", message=".*no OKS sigmas were given")
        source = open_dataset(data, keep_images)
    if skeleton is None:
        return source
    own = source.records.skeleton
    try:
        order = match(skeleton["keypoints"], own.keypoints)
    except ValueError as error:
        raise ValueError(f"the checkpoint has other keypoints than the data: {error}") from None
    sigmas = tuple(float(skeleton["sigmas"][k]) for k in order)
    source.records = replace(source.records, skeleton=replace(own, sigmas=sigmas))
    return source


def _tell(options: EvalOptions, report: Report, name: str, source: PoseSource | None) -> None:
    """Writes files, then prints the tables: whoever reads the output may close it early (`| head`)."""
    from posekd.engine.judging import judge_report
    from posekd.viz.judging import print_ap, print_errors

    console = Console(quiet=not is_main_process())
    scored = source is not None and report.main is not None and is_main_process()
    verdict = judge_report(source, report, options.pck_pair) if scored and source is not None else None
    labels = options.data.get("annotations")
    try:
        _write_files(options, report.scores, name, verdict)
    finally:  # a full disk must not cost the numbers
        _show(report.scores, console, name if labels is None else f"{name} on {labels}")
        if verdict is not None:
            print_ap(verdict.ap, console)
            for errors in filter(None, (verdict.by_box, verdict.by_pair)):
                console.print()
                print_errors(errors, console)
    if verdict is not None and source is not None and options.draw is not None:
        from posekd.engine.cases import draw_cases

        draw_cases(source, verdict.found, Path(options.draw))
        _say(f"best.png, worst.png and random.png are in {options.draw}", console, "")
    unwritten = [file for file in (options.report, options.curve) if file is not None]
    if unwritten and report.main is None:
        _say(f"nothing was scored, so these were not written: {', '.join(unwritten)}", console)
    rate, what = report.count / max(report.seconds, 1e-9), "crops" if report.unit == "person" else "images"
    console.print(f"{report.count} {what} in {report.seconds:.1f} s ({rate:.1f}/s)", highlight=False)
    if options.results is not None:
        console.print(f"{len(report.found)} poses written to {options.results}", highlight=False, markup=False)
    _say(report.note, console)


def recipe_of(card: Mapping[str, Any] | None) -> Recipe | None:
    """The recipe in a card, if `posekd train` wrote it there."""
    from posekd.engine.recipes.recipe import recipe_from_dict
    from posekd.renames import modernise

    if card is None or "recipe" not in card:
        return None
    return recipe_from_dict(modernise(card["recipe"], quiet=True))


def _open_model(
    name: str, file: Path | None, card: dict[str, Any] | None, options: EvalOptions, num_keypoints: int
) -> PoseModel:
    from posekd.models.registry import create_model, create_model_from_card, override

    overrides: dict[str, Any] = {} if options.size is None else {"size": options.size}
    key = {} if options.weights_key is None else {"weights_key": options.weights_key}
    if file is None or card is None:
        if options.weights is None:
            raise ValueError(f"{name} has no weights yet: give --weights FILE, or a .safetensors file as the model")
        return create_model(name, num_keypoints, options.weights, **key, **overrides)
    network = create_model_from_card(card, file)
    if overrides:
        network.config = override(network.config, overrides)
    return network


def _say_settings(name: str, recipe: Recipe | None, changes: Sequence[str]) -> None:
    """Says on standard error which settings are used, and what the options have changed."""
    if recipe is None or not is_main_process():
        return
    console = Console(stderr=True)
    text = f"{name}: data and settings are those of its run" + (", except for" if changes else "")
    for line in (text, *(f"  {change}" for change in changes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _refuse_curve(options: EvalOptions, metrics: Sequence[str]) -> None:
    from posekd.engine.scoring import METRICS

    if options.curve is not None and METRICS[metrics[0]].curve is None:
        raise ValueError(f"--curve draws PCK: it has no meaning for --dataset {options.dataset or 'coco'}")


def _write_files(
    options: EvalOptions, scores: Mapping[str, Score], subject: str, verdict: Verdict | None = None
) -> None:
    """Writes the report, main metric first and the others under their names, and draws the curve."""
    from posekd.engine.scoring import METRICS

    if not scores or not is_main_process():
        return
    main, *others = scores
    if options.report is not None:
        values = METRICS[main].values(scores[main])
        values |= {name: METRICS[name].values(scores[name]) for name in others}
        values |= verdict.values() if verdict is not None else {}
        write_atomically(options.report, json.dumps(values, indent=2) + "\n")
    draw = METRICS[main].curve
    if options.curve is not None and draw is not None:
        draw(scores[main], Path(options.curve), Path(subject).name)


def _show(scores: Mapping[str, Score], console: Console, title: str) -> None:
    from posekd.engine.scoring import METRICS

    for name, score in scores.items():
        METRICS[name].show(score, console, title)


def _say(note: str, console: Console, kind: str = "note: ") -> None:
    if note:
        console.print(f"{kind}{note}", highlight=False, markup=False, soft_wrap=True)
