"""The options of `posekd eval`, and what they come to for a top-down or a bottom-up network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.cli import command_parser

if TYPE_CHECKING:
    from posekd.paradigms.bottom_up import BottomUpInference
    from posekd.engine.evaluate import TopDownInference

# the options that are fields of `TopDownInference` or `BottomUpInference`
_SETTINGS = (
    "flip", "nms_threshold", "precision", "decode", "blur_kernel", "scales", "project", "refine", "border", "square",
    "max_people",
)  # fmt: skip

EPILOG = """examples:
  posekd eval runs/v1/best.safetensors --images val2017 --annotations person_keypoints_val2017.json
  posekd eval hrnet_w32 --weights pose_hrnet_w32_256x192.pth --images val2017 --annotations ...
  posekd eval --score-only results.json --annotations person_keypoints_val2017.json
  posekd eval higherhrnet_w32 --weights pose_higher_hrnet_w32_512.pth --scales 0.5 1 2 --images ... --annotations ...
  posekd eval runs/hg/best.safetensors --dataset mpii --images images --annotations valid.json --head-boxes gt_valid.mat
  posekd eval runs/hg/best.safetensors --dataset lsp --split test --images lsp/images --annotations lsp/joints.mat
  posekd eval --score-only preds.mat --dataset mpii --annotations valid.json --head-boxes gt_valid.mat
  torchrun --nproc-per-node 8 -m posekd eval ...     # on 8 GPUs"""


def read_options(argv: Sequence[str]) -> dict[str, Any]:
    """The arguments of `posekd.cli.eval.run`.

    Raises:
        ValueError: an option that is for the other kind of network.
    """
    words = vars(_parser().parse_args(argv))
    options = {name: words.pop(name) for name in _SETTINGS}
    given = {name: value for name, value in options.items() if value is not None}
    threshold = words.pop("detection_threshold")
    if threshold is not None:  # of boxes, or of the network's own peaks
        bottom_up = words["model"] is not None and sees_whole_images(words["model"])
        (given if bottom_up else words)["detection_threshold"] = threshold
    size = words.pop("size")
    return {**words, "size": None if size is None else tuple(size), "settings": _settings(words["model"], given)}


def _settings(model: str | None, given: dict[str, Any]) -> TopDownInference | BottomUpInference:
    """The settings for this kind of network, with what was given.

    Raises:
        ValueError: an option that is for the other kind.
    """
    from posekd.paradigms.bottom_up import BottomUpInference
    from posekd.engine.evaluate import TopDownInference

    bottom_up = model is not None and sees_whole_images(model)
    kind: type[Any] = BottomUpInference if bottom_up else TopDownInference
    for name in given:
        if name not in kind.__dataclass_fields__:
            other = "top-down" if bottom_up else "bottom-up"
            raise ValueError(f"--{name.replace('_', '-')} is for {other} networks, and {model} is none")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def sees_whole_images(model: str) -> bool:
    """Whether a model, by name or by the card beside its weights, sees whole images."""
    from posekd.models.weights import read_card
    from posekd.models.zoo import is_bottom_up

    if Path(model).suffix != ".safetensors":
        return is_bottom_up(model)
    card = (read_card(model) or {}).get("model")
    return isinstance(card, dict) and is_bottom_up(str(card.get("family")))


def _parser() -> Any:
    parser = command_parser("eval", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", help="a .safetensors file with its card, or a model's name with --weights")
    add("--weights", metavar="FILE", help="checkpoint for a model given by name (safetensors, official .pth)")
    add(
        "--annotations",
        required=True,
        metavar="FILE",
        help="COCO keypoint file or image list without labels; MPII's JSON or .mat; LSP's joints.mat",
    )
    add("--images", metavar="DIR", help="folder of the images")
    add("--dataset", choices=("coco", "mpii", "lsp"), default="coco", help="the label file's format, and the metric")
    add("--split", choices=("train", "valid", "test"), help="of MPII's official .mat and of LSP")
    add("--head-boxes", metavar="FILE", help="MPII's head boxes for HRNet's JSON (gt_valid.mat)")
    add("--validation-list", metavar="FILE", help="who is `valid` in MPII's official .mat (detections.mat)")
    add(
        "--detections",
        metavar="FILE",
        help="boxes of a detector (COCO results format); labelled boxes without",
    )
    threshold_help = "leave out boxes scored lower (0); bottom-up: a peak is above it (0.1)"
    add("--detection-threshold", type=float, metavar="S", help=threshold_help)
    add("--results", metavar="FILE", help="write the poses: COCO's results; for MPII and LSP .json or .mat")
    add("--report", metavar="FILE", help="write the numbers and the tables as JSON")
    add("--curve", metavar="FILE", help="draw PCK over its threshold (PNG)")
    add("--score-only", metavar="FILE", help="score this results file; no network is run")
    add("--sigmas", type=float, nargs="+", metavar="S", help="OKS constants, where keypoints are not COCO's")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="crop size in pixels; the model's own without")
    flag = argparse.BooleanOptionalAction
    add("--flip", action=flag, default=None, help="average with the mirrored picture (on)")
    add("--nms-threshold", type=float, metavar="OKS", help="remove weaker poses above (0.9; bottom-up 1: keep all)")
    add("--precision", choices=("fp32", "bf16", "fp16"))
    add("--decode", choices=("argmax", "quarter", "dark"), help="top-down (quarter)")
    add("--blur-kernel", type=int, metavar="N", help="top-down, of dark: 11 for sigma 2 (default), 17 for sigma 3")
    add("--scales", type=float, nargs="+", metavar="S", help="bottom-up: sizes of the image to average over (1)")
    add("--project", action=flag, default=None, help="bottom-up: group at the input's size, not the maps' (on)")
    add("--refine", action=flag, default=None, help="bottom-up: give everybody the joints that he misses (on)")
    add("--border", action=flag, default=None, help="bottom-up: look for joints beyond the image too (on)")
    add("--square", type=float, metavar="R", help="bottom-up: see a square with R times the image's short side")
    add("--max-people", type=int, metavar="N", help="bottom-up: peaks kept a joint (100; HigherHRNet's is 30)")
    add("--batch-size", type=int, default=32, metavar="N", help="persons; images for a bottom-up network")
    add("--workers", type=int, default=2, metavar="N", help="decoding processes")
    add("--on-bad-image", choices=("refuse", "skip"), default="refuse", help="missing or unreadable images")
    add("--device", help="cpu, cuda, cuda:1...; the GPU if there is one without")
    return parser
