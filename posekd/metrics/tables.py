"""The COCO numbers for people: tables in a terminal, plain columns elsewhere."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

from posekd.metrics.coco import CocoResult


def print_result(result: CocoResult, console: Console | None = None, title: str = "COCO keypoints") -> None:
    """Prints the ten numbers in the official order, then one line a keypoint.

    Args:
        result: what to print.
        console: where; standard output by default. Without a terminal: no frames, no colour.
        title: above the ten numbers.
    """
    console = console or Console()
    frame = box.SIMPLE if console.is_terminal else None
    heading = f"{title}: {len(result.people)} people, {result.predictions} predictions"
    console.print(heading, highlight=False, markup=False, soft_wrap=True)
    console.print(_numbers_table(result, frame))
    if result.keypoints:
        console.print("\nper keypoint, over people matched at OKS 0.5", highlight=False)
        console.print(_keypoint_table(result, frame))
    if result.note:
        console.print(f"note: {result.note}", highlight=False, markup=False)


def _numbers_table(result: CocoResult, frame: box.Box | None) -> Table:
    table = Table(box=frame, pad_edge=False)
    numbers = result.numbers()
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*(f"{v:.4f}" if v >= 0 else "-" for v in numbers.values()))
    return table


def _keypoint_table(result: CocoResult, frame: box.Box | None) -> Table:
    table = Table(box=frame, pad_edge=False)
    table.add_column("keypoint", no_wrap=True)
    for heading in ("labelled", "matched", "recall", "similarity", ">=0.5", ">=0.75", "median px"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.keypoints:
        shares = (row.recall, row.similarity, row.share_50, row.share_75)
        cells = ("-" if math.isnan(v) else f"{v:.3f}" for v in shares)
        error = "-" if math.isnan(row.median_error) else f"{row.median_error:.1f}"
        table.add_row(row.name, str(row.labelled), str(row.matched), *cells, error)
    return table
