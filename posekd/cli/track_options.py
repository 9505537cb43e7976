"""The options of `posekd eval` and `posekd predict` that say how people are followed over videos."""

from __future__ import annotations

import argparse
from typing import Any

_OPTIONS = {
    "flow": "flow",
    "propagate": "propagate",
    "track_oks": "oks_threshold",
    "track_keep": "keep",
    "least_box": "least_box",
    "least_keypoint": "least_keypoint",
}
"""Option -> the setting of `posekd.tracking.TrackSettings`."""


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add = parser.add_argument
    add("--flow", choices=("none", "dis"), help="videos: move poses to the next frame by optical flow (none)")
    add(
        "--propagate",
        type=int,
        metavar="N",
        help="videos: look for whom nothing detects around the last pose, for N frames (0)",
    )
    add("--track-oks", type=float, metavar="S", help="videos: poses of one person have at least this OKS (0.3)")
    add("--track-keep", type=int, metavar="N", help="videos: frames for which a lost person keeps its number (30)")
    add("--least-box", type=float, metavar="S", help="videos: leave out people whose box scores less (0)")
    add("--least-keypoint", type=float, metavar="S", help="videos: leave out keypoints that score less (0)")


def pop_tracking(words: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of `add_tracking` out of `words`: settings that were given."""
    given = {setting: words.pop(option) for option, setting in _OPTIONS.items()}
    return {setting: value for setting, value in given.items() if value is not None}


def track_option(setting: str) -> str:
    """The name of a setting's option."""
    return next(option for option, name in _OPTIONS.items() if name == setting).replace("_", "-")
