"""`posekd profile NAME`: parameters and compute of a model."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from posekd.models.profile import Profile, profile_model, profile_rows, profile_title
from posekd.models.registry import create_model


def run(
    name: str,
    size: tuple[int, int] | None = None,
    num_keypoints: int = 17,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Prints parameters and compute, each number with its unit and the papers that count in this way.

    Args:
        name: the model's name, one of `posekd.list_models()`.
        size: height and width of the input in pixels; the model's own when not given.
        num_keypoints: number of keypoints it predicts.
        overrides: settings of the model to change.

    Raises:
        ValueError: unknown name or setting, or a size that the model cannot take.
    """
    with torch.device("meta"):  # counting needs shapes, not weights
        model = create_model(name, num_keypoints=num_keypoints, **(overrides or {}))
    Console().print(_table(profile_model(model, size), num_keypoints))


def _table(profile: Profile, num_keypoints: int) -> Table:
    table = Table(title=f"{profile_title(profile)}, {num_keypoints} keypoints", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("whose convention")
    for row in profile_rows(profile):
        table.add_row(*row)
    return table
