"""The options with which commands open a network, and the opening."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posekd.cli.eval_options import check_inference

if TYPE_CHECKING:
    from posekd.deploy.load import Ready


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `open_network`, except for those of inference."""
    add = parser.add_argument
    add("--weights", metavar="FILE", help="checkpoint for a model given by name (safetensors, official .pth)")
    add("--weights-key", metavar="KEY", help="entry of the checkpoint with the weights, where it has an unusual name")
    add(
        "--skeleton",
        metavar="NAME",
        help="keypoints, where no card tells them: coco (default), crowdpose, lsp, mpii, posetrack",
    )
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="input size in pixels (default: the model's own)")


def open_network(options: argparse.Namespace, inference: Mapping[str, Any]) -> Ready:
    """The network that the options name, with its run's settings where no option says otherwise.

    Args:
        options: `model`, `padding`, and those of `add_network`.
        inference: settings of inference that options gave, see `eval_options.pop_inference`.

    Raises:
        ValueError: options that do not go together, or a setting that such a network does not have.
        FileNotFoundError: no checkpoint, or none with a card.
    """
    from posekd.deploy.load import ready
    from posekd.paradigms import paradigm_of

    found = ready(
        options.model,
        weights=options.weights,
        weights_key=options.weights_key,
        skeleton=options.skeleton,
        size=None if options.size is None else tuple(options.size),
        padding=options.padding,
    )
    check_inference(inference, paradigm_of(found.model), options.model)
    return replace(found, settings=replace(found.settings, **inference))
