"""`posekd eval`: scores a checkpoint, or a results file, by the dataset's metric: COCO's AP, or PCK (MPII, LSP)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from posekd.cli import speaks
from posekd.cli.eval_options import read_options, sees_whole_images
from posekd.cli.progress import Bar

if TYPE_CHECKING:
    from posekd.paradigms.bottom_up import BottomUpInference
    from posekd.engine.evaluate import TopDownInference
    from posekd.engine.scoring import Report
    from posekd.metrics import CocoResult, PckResult
    from posekd.models.base import PoseModel
    from posekd.skeleton import Skeleton


def run(
    model: str | None = None,
    *,
    annotations: str,
    images: str | None = None,
    dataset: Literal["coco", "mpii", "lsp"] = "coco",
    split: str | None = None,
    head_boxes: str | None = None,
    validation_list: str | None = None,
    weights: str | None = None,
    detections: str | None = None,
    detection_threshold: float = 0.0,
    results: str | None = None,
    report: str | None = None,
    curve: str | None = None,
    score_only: str | None = None,
    sigmas: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    settings: TopDownInference | BottomUpInference | None = None,
    batch_size: int = 32,
    workers: int = 2,
    on_bad_image: Literal["refuse", "skip"] = "refuse",
    device: str | None = None,
) -> CocoResult | PckResult | None:
    """Evaluates a network on a dataset, or scores a results file, and prints the tables.

    Under torchrun each process takes its share of the images, and the first one prints and writes.

    Args:
        model: a `.safetensors` file with its card, or the name of a model (with `weights`).
        annotations: the COCO keypoint file, for a split without labels its image list; or the label file of MPII
            (HRNet's JSON, the official .mat) or LSP (joints.mat).
        images: folder of the images.
        dataset: the label file's format; it decides the metric.
        split: of MPII's official .mat and of LSP.
        head_boxes: MPII's head boxes where the label file has none (HRNet's gt_valid.mat).
        validation_list: of MPII's official .mat: the people of the split `valid`.
        weights: checkpoint for a model given by name.
        detections: a detector's result file to take boxes from; labelled boxes without.
        detection_threshold: detections scored lower are left out. (That of a bottom-up network's peaks is one of
            `settings`.)
        results: where to write the poses: COCO's results format, or MPII's and LSP's predictions (.json or .mat).
        report: where to write the numbers and the tables as JSON.
        curve: where to draw PCK over its threshold, as PNG.
        score_only: a results file to score; no network is run.
        sigmas: K OKS constants, where the keypoints are not COCO's.
        size: height and width of the crops, or of the images, whose short side is the smaller of the two; the model's
            own when not given.
        settings: flip test, decoding, thresholds, precision: `BottomUpInference` for a bottom-up network.
        batch_size: persons a batch; images, for a bottom-up network.
        workers: decoding processes.
        on_bad_image: refuse unreadable images, or skip them with a warning.
        device: `cpu`, `cuda`, `cuda:1`...; the GPU if there is one when not given.

    Returns:
        The numbers; None for a split without labels.

    Raises:
        ValueError: options that do not go together, or any input that does not fit.
        FileNotFoundError: a file or folder that is not there.
    """
    console = Console(quiet=not speaks())
    if curve is not None and dataset == "coco":
        raise ValueError("--curve draws PCK: it has no meaning for --dataset coco")
    if not speaks():
        report = curve = None
    given: dict[str, Any] = {
        "split": split,
        "head_boxes": head_boxes,
        "validation_list": validation_list,
        "detections": detections,
        "detection_threshold": detection_threshold or None,
        "sigmas": None if sigmas is None else list(sigmas),
    }
    if score_only is not None:
        if model is not None or images is not None:
            raise ValueError("--score-only scores a results file: give no model and no --images with it")
        return _score(score_only, _data_settings(dataset, annotations, "", given), sigmas, report, curve)
    if model is None or images is None:
        raise ValueError("give a model and --images to evaluate, or --score-only FILE to score a results file")

    from posekd.data import LoaderSettings
    from posekd.engine import distributed
    from posekd.engine.build import pick_device
    from posekd.engine.recipes.datasets import open_dataset
    from posekd.engine.evaluate import evaluate
    from posekd.engine.evaluate_bottomup import evaluate_bottom_up

    data = _data_settings(dataset, annotations, images, {**given, "on_missing_image": on_bad_image})
    source = open_dataset(data, "all" if sees_whole_images(model) else "labelled")
    network = _open_model(model, weights, size, source.records.skeleton.num_keypoints)
    place = pick_device(device or "auto")
    network.to(place)
    loader = LoaderSettings(batch_size, workers, pin_memory=True, on_bad_image=on_bad_image)
    if network.bottom_up and (detections is not None or detection_threshold):
        raise ValueError(f"--detections are boxes to crop: {model} sees whole images and needs none")
    judge: Callable[..., Report] = evaluate_bottom_up if network.bottom_up else evaluate
    with distributed.group(place), Bar("evaluating") as on_batch:
        outcome = judge(network, source, settings, loader=loader, results_file=results, on_batch=on_batch)
    _show(outcome, console, model, f"{model} on {annotations}", data, report, curve)
    rate = outcome.persons / max(outcome.seconds, 1e-9)
    what = "images" if network.bottom_up else "crops"
    console.print(f"{outcome.persons} {what} in {outcome.seconds:.1f} s ({rate:.1f}/s)", highlight=False)
    if results is not None:
        console.print(f"{len(outcome.results)} poses written to {results}", highlight=False, markup=False)
    _say_note(outcome, console)
    return outcome.coco or outcome.pck


def _score(
    path: str, data: Any, sigmas: Sequence[float] | None, report: str | None, curve: str | None
) -> CocoResult | PckResult | None:
    """`--score-only`: the tables of a results file."""
    console = Console(quiet=not speaks())
    outcome = _score_file(path, data, sigmas)
    _show(outcome, console, path, path, data, report, curve)
    if outcome.coco is None:
        _say_note(outcome, console)
    return outcome.coco or outcome.pck


def _say_note(outcome: Report, console: Console) -> None:
    if outcome.note:
        console.print(f"note: {outcome.note}", highlight=False, markup=False, soft_wrap=True)


def _data_settings(dataset: str, annotations: str, images: str, given: dict[str, Any]) -> Any:
    """The settings of a dataset; options that it does not know are refused."""
    from dataclasses import fields

    from posekd.engine.recipes.datasets import DATASETS

    kind, _ = DATASETS[dataset]
    values = {name: value for name, value in given.items() if value is not None}
    known = {f.name for f in fields(kind)}
    for name in values:
        if name not in known:
            raise ValueError(f"--{name.replace('_', '-')} has no meaning for --dataset {dataset}")
    if dataset == "lsp" and "split" not in values:
        raise ValueError("--dataset lsp needs --split test (or train)")
    return kind(images=images, annotations=annotations, **values)


def _score_file(path: str, data: Any, sigmas: Sequence[float] | None) -> Report:
    from posekd.data import CocoSettings
    from posekd.engine.scoring.pck import read_pck_labels, read_predictions, score_pck
    from posekd.engine.scoring import Report
    from posekd.metrics import evaluate_people

    if isinstance(data, CocoSettings):
        coco = evaluate_people(data.annotations, path, sigmas)
        return Report(coco, [], coco.predictions, 0.0, coco.note)
    records = read_pck_labels(data)
    keypoints, ids = read_predictions(Path(path), records)
    result, torso, note = score_pck(keypoints, ids, records)
    if result is None:
        raise ValueError(f"{path} cannot be scored: {note}")
    absent = len(records) - len(ids)
    notes = (note, f"{absent} of {len(records)} people have no prediction: not scored" if absent else "")
    return Report(None, [], len(ids), 0.0, "; ".join(n for n in notes if n), result, torso)


def _show(
    outcome: Report, console: Console, subject: str, title: str, data: Any, report: str | None, curve: str | None
) -> None:
    """Writes the report, draws the curve, prints the tables: files first, for who reads may stop (`| head`)."""
    from posekd.viz.tables import print_pck, print_result

    if outcome.coco is not None:
        _write_report(_coco_report(outcome.coco), report)
        print_result(outcome.coco, console, title=title)
    if outcome.pck is not None:
        from posekd.data import LspSettings
        from posekd.engine.scoring.pck import pck_report
        from posekd.viz.curves import plot_pck

        joints = _skeleton_of(data).keypoints
        _write_report(pck_report(outcome.pck, joints, outcome.torso, outcome.note), report)
        if curve is not None:
            unit = "torso" if isinstance(data, LspSettings) else "head size"
            plot_pck(outcome.pck, Path(curve), Path(subject).name, unit=unit)
        print_pck(outcome.pck, joints, console, title, outcome.torso)
    unwritten = [file for file in (report, curve) if file is not None]
    if unwritten and outcome.coco is None and outcome.pck is None:
        text = f"note: nothing was scored, so these were not written: {', '.join(unwritten)}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _skeleton_of(data: Any) -> Skeleton:
    from posekd.data import LspSettings
    from posekd.skeleton import LSP, MPII

    return LSP if isinstance(data, LspSettings) else MPII


def main(argv: Sequence[str]) -> int:
    """Reads the command line and calls `run`."""
    run(**read_options(argv))
    return 0


def _open_model(model: str, weights: str | None, size: tuple[int, int] | None, num_keypoints: int) -> PoseModel:
    from posekd.models.registry import create_model, create_model_from_card, override
    from posekd.models.weights import read_card

    overrides: dict[str, Any] = {} if size is None else {"size": size}
    if Path(model).suffix != ".safetensors":
        if weights is None:
            raise ValueError(f"{model} has no weights yet: give --weights FILE, or a .safetensors file as the model")
        return create_model(model, num_keypoints, weights, **overrides)
    if weights is not None:
        raise ValueError(f"{model} has its own weights: give no --weights with it")
    if not Path(model).is_file():
        raise FileNotFoundError(f"no checkpoint at {model}")
    card = read_card(model)
    if card is None:
        raise FileNotFoundError(f"{model} has no card (.json) beside it: give the model's name and --weights {model}")
    network = create_model_from_card(card, model)
    if overrides:
        network.config = override(network.config, overrides)
    return network


def _coco_report(result: CocoResult) -> dict[str, Any]:
    from dataclasses import asdict

    return {**result.numbers(), **{k: v for k, v in asdict(result).items() if k not in result.numbers()}}


def _write_report(content: dict[str, Any], path: str | None) -> None:
    if path is None:
        return
    from posekd.files import write_atomically

    write_atomically(path, json.dumps(content, indent=2) + "\n")
