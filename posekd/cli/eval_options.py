"""The options of `posekd eval`, combined with the recipe in a checkpoint's card."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from posekd.cli import command_parser
from posekd.cli.track_options import add_tracking, pop_tracking, track_option

if TYPE_CHECKING:
    from posekd.engine.recipes.recipe import Recipe
    from posekd.paradigms import Paradigm
    from posekd.tracking import TrackSettings

# options that are keys of the recipe's group `inference`, by their old names in it
_INFERENCE = (
    "flip", "nms_threshold", "precision", "decode", "blur_kernel", "scales", "project", "refine", "border", "square",
    "letterbox", "max_people",
)  # fmt: skip
# options that are fields of a dataset's settings
_DATA = (
    "annotations", "images", "split", "head_boxes", "validation_list", "detections", "detection_threshold", "sigmas",
    "category", "apply_orientation", "max_detections", "whole_body", "compat", "groups",
)  # fmt: skip

EPILOG = """A checkpoint that `posekd train` wrote remembers its run: data, padding, test settings and sigmas are the
run's unless an option overrides them; each override is reported.

examples:
  posekd eval runs/v1                                # the run's own number: its best network, data and settings
  posekd eval runs/v1/best.safetensors --images val2017 --annotations person_keypoints_val2017.json
  posekd eval --compare runs/alone runs/taught       # with an interval by a paired bootstrap over images
  posekd eval hrnet_w32 --weights pose_hrnet_w32_256x192.pth --images val2017 --annotations ...
  posekd eval --score-only results.json --annotations person_keypoints_val2017.json
  posekd eval higherhrnet_w32 --weights pose_higher_hrnet_w32_512.pth --scales 0.5 1 2 --images ... --annotations ...
  posekd eval runs/hg/best.safetensors --dataset mpii --images images --annotations valid.json --head-boxes gt_valid.mat
  posekd eval runs/hg/best.safetensors --dataset lsp --split test --images lsp/images --annotations lsp/joints.mat
  posekd eval --score-only preds.mat --dataset mpii --annotations valid.json --head-boxes gt_valid.mat
  posekd eval runs/simple --dataset posetrack --images posetrack18 --annotations posetrack18/annotations/val --flow dis
  posekd eval --score-only results --dataset posetrack --annotations posetrack18/annotations/val --compat
  torchrun --nproc-per-node 8 -m posekd eval ...     # on 8 GPUs"""


@dataclass(frozen=True)
class EvalOptions:
    """The options of a command line.

    Attributes:
        model: a run's folder, a checkpoint or a model's name; None with `score_only`.
        data: the settings of the dataset that were given.
        inference: the keys of the recipe's group `inference` that were given.
        tracking: those of its group `tracking`.
        dataset: the kind of dataset (coco, mpii, lsp, ...), if given.
        weights: checkpoint of a model given by name.
        weights_key: entry of that file with the weights, if given.
        size: height and width of the input in pixels, if given.
        padding: factor by which crops are larger than boxes, if given.
        results: where to write the people.
        report: where to write numbers and tables as JSON.
        curve: where to draw the metric's curve.
        score_only: a results file to score.
        batch_size: rows per batch.
        workers: decoding processes.
        on_bad_image: `refuse` or `skip` unreadable images.
        device: name of the device, if given.
        acknowledge: what looks wrong in the data and is meant so.
        compare: two runs or checkpoints to compare, if given.
        pck_pair: two keypoints whose distance PCK is to be measured by, if given.
        draw: a folder for pictures of the best, the worst and random people, if given.
    """

    model: str | None
    data: dict[str, Any]
    inference: dict[str, Any]
    tracking: dict[str, Any]
    dataset: str | None
    weights: str | None
    weights_key: str | None
    size: tuple[int, int] | None
    padding: float | None
    results: str | None
    report: str | None
    curve: str | None
    score_only: str | None
    batch_size: int
    workers: int
    on_bad_image: str
    device: str | None
    acknowledge: list[str]
    compare: tuple[str, str] | None
    pck_pair: tuple[str, str] | None
    draw: str | None


def read_options(argv: Sequence[str]) -> EvalOptions:
    """Reads the words of a command line."""
    words = vars(_parser().parse_args(argv))
    inference, tracking = pop_inference(words), pop_tracking(words)
    data = {name: words.pop(name) for name in _DATA}
    size, compare, pair = (words.pop(name) for name in ("size", "compare", "pck_pair"))
    return EvalOptions(
        **words,
        compare=None if compare is None else (compare[0], compare[1]),
        pck_pair=None if pair is None else (pair[0], pair[1]),
        size=None if size is None else (size[0], size[1]),
        data={name: value for name, value in data.items() if value is not None},
        inference=inference,
        tracking=tracking,
    )


def for_paradigm(options: EvalOptions, paradigm: Paradigm) -> EvalOptions:
    """The options for a network of this paradigm. (For bottom-up networks the detection threshold is that of peaks.)

    Raises:
        ValueError: an option that has no meaning for such a network.
    """
    known = {field.name for field in fields(paradigm.inference)}
    data, inference = dict(options.data), dict(options.inference)
    if "detection_threshold" in known and "detection_threshold" in data:
        inference["detection_threshold"] = data.pop("detection_threshold")
    check_inference(inference, paradigm, options.model)
    if not paradigm.crops_boxes and "detections" in data:
        raise ValueError(f"--detections are boxes to crop: {options.model} sees whole images and needs none")
    return replace(options, data=data, inference=inference)


def inference_settings(options: EvalOptions, paradigm: Paradigm, recipe: Recipe | None) -> tuple[Any, list[str]]:
    """The inference settings: those of its run, with the options' changes.

    Returns:
        The settings of inference, and one line per setting of the run that is changed.
    """
    if recipe is None:
        return paradigm.inference(**options.inference), []
    from posekd.engine.build import validation_settings

    own = validation_settings(recipe)
    changes = _changes({name: getattr(own, name) for name in options.inference}, options.inference)
    return replace(own, **options.inference), changes


def track_settings(options: EvalOptions, recipe: Recipe | None, has_videos: bool) -> tuple[TrackSettings, list[str]]:
    """How people are followed: as in the run, with the options' changes; and a line per setting that is changed.

    Raises:
        ValueError: options for a dataset without videos.
    """
    from posekd.tracking import TrackSettings

    if options.tracking and not has_videos:
        given = ", ".join(f"--{track_option(name)}" for name in options.tracking)
        raise ValueError(f"{given}: nobody is followed over images that are no videos (--dataset posetrack has some)")
    own = recipe.tracking if recipe is not None else TrackSettings()
    changes = _changes({name: getattr(own, name) for name in options.tracking}, options.tracking) if recipe else []
    return replace(own, **options.tracking), changes


def data_settings(options: EvalOptions, recipe: Recipe | None) -> tuple[Any, list[str]]:
    """The dataset: that of the run, with the options' changes, or the one that the options describe.

    Returns:
        The settings of the dataset, and one line per setting of the run that is changed.

    Raises:
        ValueError: options that do not describe a dataset, or that have no meaning for this one.
    """
    from posekd.engine.recipes.datasets import DATASETS, dataset_of

    given, own = dict(options.data), recipe.val_data if recipe is not None else None
    if options.on_bad_image == "skip":
        given["on_missing_image"] = "skip"
    if options.dataset is None and own is not None and "annotations" not in given:
        _refuse_unknown(given, type(own), next(n for n, d in DATASETS.items() if d is dataset_of(own)))
        changes = _changes({name: getattr(own, name) for name in given}, given)
        return replace(own, **given), changes
    name = options.dataset or "coco"
    kind = DATASETS[name].settings
    if "annotations" not in given or ("images" not in given and options.score_only is None):
        raise ValueError(
            "give a model and --images to evaluate, or --score-only FILE to score a results file, both with "
            "--annotations; a checkpoint of a run needs neither"
        )
    _refuse_unknown(given, kind, name)
    if name == "lsp" and "split" not in given:
        raise ValueError("--dataset lsp needs --split test (or train)")
    return kind(**{"images": "", **given}), []


def _refuse_unknown(given: dict[str, Any], kind: type[Any], dataset: str) -> None:
    known = {field.name for field in fields(kind)}
    for name in given:
        if name not in known:
            raise ValueError(f"--{option_of(name)} has no meaning for --dataset {dataset}")


def _changes(own: dict[str, Any], given: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {value}, where the checkpoint's run had {own[name]}"
        for name, value in given.items()
        if own[name] != value
    ]


def option_of(key: str) -> str:
    """The name of a key's option."""
    from posekd.renames import new_name

    old = next((name for name in _INFERENCE if new_name(f"inference.{name}") == f"inference.{key}"), key)
    return {"max_detections": "max-dets"}.get(old, old.replace("_", "-"))


def add_inference(parser: argparse.ArgumentParser, precision: bool = True) -> None:
    """Adds the options that say how a network is run; without that of autocast if `precision` is false."""
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add("--flip", action=flag, default=None, help="average with the mirrored image (on)")
    add(
        "--nms-threshold",
        type=float,
        metavar="OKS",
        help="of two poses with a higher OKS, remove the weaker (0.9; bottom-up 1: keep all)",
    )
    add("--padding", type=float, metavar="F", help="how much larger crops are than boxes (the run's, else 1.25)")
    if precision:
        add("--precision", choices=("fp32", "bf16", "fp16"))
    add(
        "--decode",
        choices=("argmax", "quarter", "dark", "gaussian"),
        help="top-down: argmax, quarter or dark; single-network: quarter or gaussian (quarter)",
    )
    add("--blur-kernel", type=int, metavar="N", help="top-down, of dark: 11 for sigma 2 (default), 17 for sigma 3")
    add("--scales", type=float, nargs="+", metavar="S", help="whole images: sizes of the image to average over (1)")
    add("--project", action=flag, default=None, help="bottom-up: group at the input's size, not the maps' (on)")
    add("--refine", action=flag, default=None, help="bottom-up: fill in people's missing keypoints (on)")
    add("--border", action=flag, default=None, help="bottom-up: look for keypoints beyond the image too (on)")
    add("--square", type=float, metavar="R", help="whole images: use a square with R times the image's short side")
    add("--letterbox", action=flag, default=None, help="single-network: fit the whole image into a square (off)")
    add("--max-people", type=int, metavar="N", help="bottom-up: peaks kept per keypoint (100; HigherHRNet's is 30)")


def pop_inference(words: dict[str, Any], precision: bool = True) -> dict[str, Any]:
    """Takes the options of `add_inference` out of `words`: keys of the recipe's group `inference` that were given.

    The padding, a key of the group `loader`, stays; without `precision` that option too, which then is another.
    """
    from posekd.renames import new_name

    given = {name: words.pop(name) for name in _INFERENCE if precision or name != "precision"}
    return {
        new_name(f"inference.{name}").partition(".")[2]: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def check_inference(inference: Mapping[str, Any], paradigm: Paradigm, model: str | None) -> None:
    """Refuses an option of `add_inference` that has no meaning for such a network.

    Raises:
        ValueError: names the option.
    """
    known = {field.name for field in fields(paradigm.inference)}
    for name in inference:
        if name not in known:
            raise ValueError(f"--{option_of(name)} has no meaning for a {paradigm.title} network, which {model} is")


def refuse_settings(model: str, words: Mapping[str, Any], inference: Mapping[str, Any]) -> None:
    """Refuses options that an exported network, whose settings are in its graph, cannot follow.

    Args:
        model: the file.
        words: options by name, of which those that build a network are looked at.
        inference: from `pop_inference`.

    Raises:
        ValueError: names the options.
    """
    fixed = [key for key in ("weights", "weights_key", "skeleton", "size", "padding") if words.get(key) is not None]
    if fixed or inference:
        given = ", ".join(f"--{option_of(key)}" for key in (*fixed, *inference))
        raise ValueError(f"{model} was exported with its settings: {given} cannot change them")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("eval", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", help="a run's folder, a .safetensors file with its card, or a model's name with --weights")
    add("--weights", metavar="FILE", help="checkpoint for a model given by name (safetensors, official .pth)")
    add("--weights-key", metavar="KEY", help="entry of the checkpoint with the weights, where it has an unusual name")
    add(
        "--annotations",
        metavar="FILE",
        help="COCO keypoint file or image list without labels; MPII's JSON or .mat; LSP's joints.mat; PoseTrack18's "
        "JSON, a file or a folder of them (the run's)",
    )
    add("--images", metavar="DIR", help="folder of the images (default: the run's)")
    add(
        "--dataset",
        choices=("coco", "mpii", "mpii_groups", "lsp", "posetrack"),
        help="the label file's format, and the metric (coco)",
    )
    add("--split", choices=("train", "valid", "test"), help="of MPII's official .mat and of LSP")
    add("--head-boxes", metavar="FILE", help="MPII's head boxes for HRNet's JSON (gt_valid.mat)")
    add("--validation-list", metavar="FILE", help="people of split `valid` in MPII's official .mat (detections.mat)")
    add(
        "--detections",
        metavar="FILE",
        help="boxes of a detector in COCO's results format (default: labelled boxes)",
    )
    threshold_help = "leave out boxes with a lower score (0); bottom-up: peaks must be above it (0.1)"
    add("--detection-threshold", type=float, metavar="S", help=threshold_help)
    results_help = (
        "write the poses: COCO's results; for MPII and LSP .json or .mat; for PoseTrack a folder of its files"
    )
    add("--results", metavar="FILE", help=results_help)
    add("--report", metavar="FILE", help="write the numbers and the tables as JSON")
    add("--curve", metavar="FILE", help="draw PCK over its threshold (PNG)")
    add("--compare", nargs=2, metavar=("A", "B"), help="two runs on the same data: how certain is their difference?")
    add(
        "--pck-pair",
        nargs=2,
        metavar=("K1", "K2"),
        help="errors and PCK relative to the distance of two keypoints, too",
    )
    add("--draw", metavar="DIR", help="draw the best, the worst and random people, labels beside what was found")
    add("--score-only", metavar="FILE", help="score this results file; no network is run")
    compat_help = "PoseTrack: the official evaluator's answer, with its habits (docs/posetrack.md)"
    add("--compat", action=argparse.BooleanOptionalAction, default=None, help=compat_help)
    add("--groups", metavar="FILE", help="MPII's groups of people, for --dataset mpii_groups")
    add_tracking(parser)
    add("--sigmas", type=float, nargs="+", metavar="S", help="OKS constants, for keypoints other than COCO's")
    add("--category", metavar="NAME", help="of the label file, where several have keypoints (all of one skeleton)")
    add(
        "--max-dets",
        dest="max_detections",
        type=int,
        metavar="N",
        help="predictions of an image that COCO's AP counts (20, the official rule)",
    )
    add("--whole-body", action=argparse.BooleanOptionalAction, default=None, help="all 133 keypoints of COCO-WholeBody")
    add("--apply-orientation", action=argparse.BooleanOptionalAction, default=None, help="turn images by EXIF (off)")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size in pixels (default: the model's own)")
    add_inference(parser)
    add("--batch-size", type=int, default=32, metavar="N", help="persons per batch; images for a bottom-up network")
    add("--workers", type=int, default=2, metavar="N", help="decoding processes")
    add(
        "--on-bad-image",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about missing or unreadable images",
    )
    meant = ("corner_boxes", "normalised")
    add("--acknowledge", nargs="+", choices=meant, default=[], help="labels that look wrong and are meant so")
    add("--device", help="cpu, cuda, cuda:1... (default: the GPU if there is one)")
    return parser
