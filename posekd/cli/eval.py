"""`posekd eval`: scores a checkpoint, or a results file, with the COCO keypoint metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from posekd.cli import command_parser

if TYPE_CHECKING:
    from posekd.engine.evaluate import EvalSettings
    from posekd.metrics import CocoResult
    from posekd.models.base import PoseModel

EPILOG = """examples:
  posekd eval runs/v1/best.safetensors --images val2017 --annotations person_keypoints_val2017.json
  posekd eval hrnet_w32 --weights pose_hrnet_w32_256x192.pth --images val2017 --annotations ...
  posekd eval --score-only results.json --annotations person_keypoints_val2017.json"""


def run(
    model: str | None = None,
    *,
    annotations: str,
    images: str | None = None,
    weights: str | None = None,
    detections: str | None = None,
    detection_threshold: float = 0.0,
    results: str | None = None,
    report: str | None = None,
    score_only: str | None = None,
    sigmas: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    settings: EvalSettings | None = None,
    batch_size: int = 32,
    workers: int = 2,
    on_bad_image: Literal["refuse", "skip"] = "refuse",
    device: str | None = None,
) -> CocoResult | None:
    """Evaluates a network on COCO-format data, or scores a results file, and prints the tables.

    Args:
        model: a `.safetensors` file with its card, or the name of a model (with `weights`).
        annotations: the COCO keypoint file; for a split without labels, its image list.
        images: folder of the images.
        weights: checkpoint for a model given by name.
        detections: a detector's result file to take boxes from; labelled boxes without.
        detection_threshold: detections scored lower are left out.
        results: where to write the poses in COCO's results format.
        report: where to write the ten numbers and the tables as JSON.
        score_only: a results file to score; no network is run.
        sigmas: K OKS constants, where the keypoints are not COCO's.
        size: height and width of the crops; the model's own when not given.
        settings: flip test, decoding, thresholds, precision.
        batch_size: persons a batch.
        workers: decoding processes.
        on_bad_image: refuse unreadable images, or skip them with a warning.
        device: `cpu`, `cuda`, `cuda:1`...; the GPU if there is one when not given.

    Returns:
        The numbers; None for a split without labels.

    Raises:
        ValueError: options that do not go together, or any input that does not fit.
        FileNotFoundError: a file or folder that is not there.
    """
    from posekd.metrics import evaluate_coco
    from posekd.metrics.tables import print_result

    console = Console()
    if score_only is not None:
        if model is not None or images is not None:
            raise ValueError("--score-only scores a results file: give no model and no --images with it")
        scored = evaluate_coco(annotations, score_only, sigmas)
        print_result(scored, console, title=score_only)
        _write_report(scored, report)
        return scored
    if model is None or images is None:
        raise ValueError("give a model and --images to evaluate, or --score-only FILE to score a results file")

    import torch

    from posekd.data import CocoKeypoints, CocoSettings, LoaderSettings
    from posekd.engine.evaluate import evaluate

    given = None if sigmas is None else list(sigmas)
    source = CocoKeypoints(
        CocoSettings(
            images,
            annotations,
            detections,
            detection_threshold,
            sigmas=given,
            on_missing_image=on_bad_image,
        )
    )
    network = _open_model(model, weights, size, source.records.skeleton.num_keypoints)
    network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    loader = LoaderSettings(batch_size, workers, pin_memory=True, on_bad_image=on_bad_image)
    with _Bar(len(source.records)) as on_batch:
        outcome = evaluate(network, source, settings, loader=loader, results_file=results, on_batch=on_batch)
    if outcome.coco is not None:
        print_result(outcome.coco, console, title=f"{model} on {annotations}")
        _write_report(outcome.coco, report)
    rate = outcome.persons / max(outcome.seconds, 1e-9)
    console.print(f"{outcome.persons} crops in {outcome.seconds:.1f} s ({rate:.1f}/s)", highlight=False)
    if results is not None:
        console.print(f"{len(outcome.results)} poses written to {results}", highlight=False, markup=False)
    if outcome.note:
        console.print(f"note: {outcome.note}", highlight=False, markup=False)
    return outcome.coco


def main(argv: Sequence[str]) -> int:
    """Reads the command line and calls `run`."""
    from posekd.engine.evaluate import EvalSettings

    parser = _parser()
    words = vars(parser.parse_args(argv))
    settings = EvalSettings(
        flip=words.pop("flip"),
        decode=words.pop("decode"),
        blur_kernel=words.pop("blur_kernel"),
        nms_threshold=words.pop("nms_threshold"),
        precision=words.pop("precision"),
    )
    size = words.pop("size")
    run(**words, size=None if size is None else tuple(size), settings=settings)
    return 0


def _parser() -> Any:
    import argparse

    parser = command_parser("eval", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", help="a .safetensors file with its card, or a model's name with --weights")
    add("--weights", metavar="FILE", help="checkpoint for a model given by name (safetensors, official .pth)")
    add(
        "--annotations",
        required=True,
        metavar="FILE",
        help="COCO keypoint file, or image list without labels",
    )
    add("--images", metavar="DIR", help="folder of the images")
    add(
        "--detections",
        metavar="FILE",
        help="boxes of a detector (COCO results format); labelled boxes without",
    )
    add("--detection-threshold", type=float, default=0.0, metavar="S", help="leave out boxes scored lower")
    add("--results", metavar="FILE", help="write the poses in COCO's results format")
    add("--report", metavar="FILE", help="write the ten numbers and the tables as JSON")
    add("--score-only", metavar="FILE", help="score this results file; no network is run")
    add("--sigmas", type=float, nargs="+", metavar="S", help="OKS constants, where keypoints are not COCO's")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="crop size in pixels; the model's own without")
    add("--flip", action=argparse.BooleanOptionalAction, default=True, help="average with the mirrored crop")
    add("--decode", choices=("argmax", "quarter", "dark"), default="quarter")
    add("--blur-kernel", type=int, default=11, metavar="N", help="of dark: 11 for sigma 2, 17 for sigma 3")
    add(
        "--nms-threshold",
        type=float,
        default=0.9,
        metavar="OKS",
        help="remove weaker poses above; 1 keeps all",
    )
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    add("--batch-size", type=int, default=32, metavar="N")
    add("--workers", type=int, default=2, metavar="N", help="decoding processes")
    add("--on-bad-image", choices=("refuse", "skip"), default="refuse", help="missing or unreadable images")
    add("--device", help="cpu, cuda, cuda:1...; the GPU if there is one without")
    return parser


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


def _write_report(result: CocoResult, path: str | None) -> None:
    if path is None:
        return
    from dataclasses import asdict

    from posekd.engine.evaluate import write_atomically

    content = {**result.numbers(), **{k: v for k, v in asdict(result).items() if k not in result.numbers()}}
    write_atomically(json.dumps(content, indent=2) + "\n", path)


class _Bar:
    """A progress bar on standard error, only in a terminal."""

    def __init__(self, total: int) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("evaluating", total=total)

    def __enter__(self) -> Callable[[int, int], None]:
        self._progress.start()
        return lambda done, total: self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
