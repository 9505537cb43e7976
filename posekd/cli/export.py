"""`posekd export MODEL`: writes a network that takes images and gives keypoints, and checks that it says the same."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from posekd.cli import command_parser
from posekd.cli.eval_options import add_inference, pop_inference
from posekd.cli.networks import add_network, open_network
from posekd.files import check_writable

if TYPE_CHECKING:
    from posekd.data import PoseSource
    from posekd.deploy.deviation import Deviation
    from posekd.deploy.load import Ready
    from posekd.engine.scoring import Report
    from posekd.models import PoseModel

RUN = "the run's"

EPILOG = """A checkpoint that `posekd train` wrote is exported as its run has tested it (flip test, decoding, padding),
unless an option says otherwise. Any ONNX runtime takes the file (docs/export.md), and so do posekd predict and eval.

examples:
  posekd export runs/v1 --verify                        # beside the checkpoint; compared on the run's validation data
  posekd export runs/v1 --no-flip --precision fp16 --verify labels.json --images photos --out small.onnx
  posekd export runs/v1 --precision int8 --calibrate --verify --max-loss 1
  posekd export runs/v1 --format web --out page               # for the browser: an image or the webcam, drawn upon
  posekd export hrnet_w32 --weights pose_hrnet_w32_256x192.pth --out hrnet.onnx"""


def main(argv: Sequence[str]) -> int:
    """Exports a network and, if asked for, compares it with the file on the same people.

    Raises:
        ValueError: options that do not go together, or a network that cannot be exported.
        FileNotFoundError: a file or folder does not exist.
        ExportDriftError: the file does not say what the network says.
    """
    words = vars(_parser().parse_args(argv))
    inference = pop_inference(words, precision=False)
    options = argparse.Namespace(**words)
    if options.format == "pt2" and options.precision == "int8":
        raise ValueError("int8 is a precision of ONNX files: --precision int8 goes with --format onnx or web")
    if options.compile and options.format != "pt2":
        raise ValueError("--compile makes machine code of a program of torch.export: give --format pt2 with it")
    if options.precision == "int8" and options.calibrate is None:
        raise ValueError("--precision int8 needs --calibrate: images from which the ranges of activations are taken")
    if options.max_loss is not None and options.verify is None:
        raise ValueError("--max-loss is a limit of --verify: give both")

    from posekd.deploy.export import export_onnx
    from posekd.deploy.forms import calibration
    from posekd.deploy.program import export_program
    from posekd.deploy.web import export_web
    from posekd.paradigms import paradigm_of

    found = open_network(options, inference)
    path = _target(options, found)
    check_writable(path)
    feeds = None
    if options.precision == "int8":
        source = _open(options, options.calibrate, "train_data", found)
        feeds = calibration(source, paradigm_of(found.model), options.calibration_people)
    if options.format == "pt2":
        facts = export_program(found, path, options.precision, options.compile)
    elif options.format == "web":
        facts = export_web(found, path.parent, options.precision, feeds)
    else:
        facts = export_onnx(found, path, options.precision, feeds)
    console = Console()
    height, width = facts.spec.size
    console.print(
        f"{path}: {facts.model} at {height}x{width}, {facts.skeleton.num_keypoints} keypoints, {facts.precision}, "
        f"{path.stat().st_size / 2**20:.1f} MiB",
        highlight=False,
        soft_wrap=True,
    )
    if options.format == "web":
        serve = f"python -m http.server -b 127.0.0.1 -d {shlex.quote(str(path.parent))} 8000"
        console.print(f"a page that shows it: {serve}, then http://localhost:8000", highlight=False, soft_wrap=True)
    if options.verify is not None:
        _verify(options, found, path, console)
    return 0


def _target(options: argparse.Namespace, found: Ready) -> Path:
    """The file to write.

    Raises:
        ValueError: `--out` has another suffix than files of the format.
    """
    from posekd.deploy.web import NETWORK

    if options.format == "web":
        beside = _beside(options.model, found.model, "onnx").parent / "web"
        return (beside if options.out is None else Path(options.out)) / NETWORK
    path = _beside(options.model, found.model, options.format) if options.out is None else Path(options.out)
    if path.suffix != f".{options.format}":
        raise ValueError(f"--out {path}: the names of such files end in .{options.format}, by which they are known")
    return path


def _beside(name: str, model: PoseModel, suffix: str) -> Path:
    """Where the file goes if nobody says: beside the checkpoint, or into this folder under the model's name."""
    from posekd.deploy.load import find_card

    file = find_card(name)[0] if Path(name).exists() else None
    return Path(f"{model.name}.{suffix}") if file is None else file.with_suffix(f".{suffix}")


def _open(options: argparse.Namespace, labels: str, group: str, found: Ready) -> PoseSource:
    """The dataset of a label file, or that of the run."""
    from posekd.cli.eval import open_data, recipe_of
    from posekd.data import CocoSettings
    from posekd.deploy.load import find_card
    from posekd.paradigms import paradigm_of

    keep = paradigm_of(found.model).evaluation_images
    _, card = find_card(options.model, options.weights)
    if labels != RUN:
        images = options.images or str(Path(labels).parent)
        return open_data(CocoSettings(images=images, annotations=labels), keep, card)
    recipe = recipe_of(card)
    data: Any = None if recipe is None else getattr(recipe, group)
    if data is None:
        raise ValueError(f"{options.model} does not say what it was trained on: give a label file, and --images")
    return open_data(data, keep, card)


def _verify(options: argparse.Namespace, found: Ready, path: Path, console: Console) -> None:
    import time

    from posekd.cli.progress import Bar
    from posekd.deploy.deviation import judge
    from posekd.deploy.exported import open_exported
    from posekd.deploy.verify import compare
    from posekd.engine.evaluate import report_people
    from posekd.engine.scoring import METRICS
    from posekd.paradigms import paradigm_of

    source = _open(options, options.verify, "val_data", found)
    finder, start = open_exported(path, options.batch_size), time.perf_counter()
    with Bar("comparing") as on_done:
        *both, deviation = compare(found, finder, source, batch_size=options.batch_size, on_done=on_done)
    paradigm = paradigm_of(found.model)
    reports = [
        report_people(source, people, paradigm, found.settings, start=start, count=len(people)) for people in both
    ]
    scale = 100 / METRICS[reports[0].metrics[0]].scale if reports[0].metrics else 1.0
    before, after = (_points(report, scale) for report in reports)
    _show(deviation, reports, before, after, console)
    judge(deviation, before, after, options.precision, options.max_loss)


def _points(report: Report, scale: float) -> float:
    """The main score in points of 100; 0 where nothing can be scored."""
    return next(iter(report.main.numbers.values())) * scale if report.main is not None else 0.0


def _show(deviation: Deviation, reports: Sequence[Report], before: float, after: float, console: Console) -> None:
    alone = f", {deviation.alone} of whom only one of both has found" if deviation.alone else ""
    console.print(
        f"the network and the file on {deviation.persons} people{alone}: deviation in image pixels", highlight=False
    )
    table = Table()
    for name in ("keypoint", "median", "worst"):
        table.add_column(name, justify="left" if name == "keypoint" else "right")
    for name, median, worst in zip(deviation.names, deviation.median, deviation.worst, strict=True):
        table.add_row(name, f"{median:.4f}", f"{worst:.4f}")
    console.print(table)
    console.print(
        f"{deviation.sure} of {deviation.persons * len(deviation.names)} keypoints have a place beyond doubt; the "
        f"worst of these deviates by {deviation.worst_sure:.4f} pixels, the worst score by {deviation.score:.2g}",
        highlight=False,
        soft_wrap=True,
    )
    if reports[0].main is None:
        console.print(f"nothing was scored: {reports[0].note}", highlight=False, soft_wrap=True)
        return
    name = next(iter(reports[0].main.numbers))
    console.print(f"{name}: {before:.3f} before, {after:.3f} after ({after - before:+.3f} points)", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("export", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="a run's folder, a .safetensors file with its card, or a model's name with --weights")
    add(
        "--format",
        choices=("onnx", "pt2", "web"),
        default="onnx",
        help="ONNX, a program of torch.export, or a web page",
    )
    add("--compile", action="store_true", help="pt2: compile it for this machine's processor (needs a C++ compiler)")
    add("--out", metavar="FILE", help="where to write; web: a folder (default: beside the checkpoint)")
    add("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of weights and arithmetic (fp32)")
    data = "COCO labels; without FILE the run's own "
    add("--verify", nargs="?", const=RUN, metavar="FILE", help=f"compare with PyTorch on {data}validation data")
    add("--calibrate", nargs="?", const=RUN, metavar="FILE", help=f"int8: take ranges from {data}training data")
    add(
        "--calibration-people",
        type=int,
        default=100,
        metavar="N",
        help="of --calibrate (100); images, if the network sees whole ones",
    )
    add("--images", metavar="DIR", help="folder of the images of these files (default: the file's folder)")
    add("--max-loss", type=float, metavar="POINTS", help="by which the score may move (0.1; int8: anything)")
    add_network(parser)
    add_inference(parser, precision=False)
    add("--batch-size", type=int, default=16, metavar="N", help="people per batch of --verify (16)")
    return parser
