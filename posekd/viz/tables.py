"""COCO's numbers and PCK for reading: tables in a terminal, plain columns elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from posekd.metrics.boxes import BoxResult
from posekd.metrics.coco import CocoResult
from posekd.metrics.mpii_groups import GroupsResult
from posekd.metrics.pck import PckResult
from posekd.metrics.posetrack import PoseTrackResult


def print_result(result: CocoResult, console: Console | None = None, title: str = "COCO keypoints") -> None:
    """Prints the ten numbers in the official order, then one line per keypoint.

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


def print_boxes(result: BoxResult, console: Console) -> None:
    """Prints the numbers of boxes in the official order."""
    console.print(f"\nboxes: {result.labelled} people, {result.predictions} predictions", highlight=False)
    console.print(_numbers_table(result, box.SIMPLE if console.is_terminal else None))


def _numbers_table(result: CocoResult | BoxResult, frame: box.Box | None) -> Table:
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


def print_pck(
    result: PckResult,
    joints: Sequence[str],
    console: Console | None = None,
    title: str = "keypoints",
    *,
    hrnet_mean: bool = False,
) -> None:
    """Prints PCK in the papers' column order (Head Shoulder Elbow Wrist Hip Knee Ankle Mean AUC), then each keypoint.

    Args:
        result: what to print.
        joints: K names.
        console: where; standard output by default. Without a terminal: no frames, no colour.
        title: above the table.
        hrnet_mean: also what HRNet's code prints as "Mean@0.1".
    """
    console = console or Console()
    frame = box.SIMPLE if console.is_terminal else None
    heading = f"{title}: {result.name} of {result.people} people, in percent"
    console.print(heading, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=frame, pad_edge=False)
    row = {**result.groups, "Mean": result.mean, "AUC": result.auc}
    for name in row:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*map(_percent, row.values()))
    console.print(table)
    line = f"{result.kind}@0.1 {_percent(result.mean_at_10)}"
    if hrnet_mean:
        line += f'; HRNet\'s "Mean@0.1", which is at 0.11: {_percent(result.hrnet_mean_at_01)}'
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    console.print(_joint_table(result, joints, frame))


def print_torso(result: PckResult, console: Console | None = None) -> None:
    """Prints PCK by torso length (ELPN's Equation 5) in one line."""
    text = f"torso {result.name} (ELPN, Equation 5) {_percent(result.mean)} of {result.people} people"
    (console or Console()).print(text, highlight=False, markup=False, soft_wrap=True)


def print_posetrack(result: PoseTrackResult, console: Console | None = None, title: str = "videos") -> None:
    """Prints PoseTrack's numbers in the papers' columns: Head Shou Elb Wri Hip Knee Ankl Total, in percent."""
    console = console or Console()
    count = f"{result.sequences} video{'s' if result.sequences > 1 else ''}"
    console.print(f"{title}: {count}, in percent", highlight=False, markup=False, soft_wrap=True)
    rows = {name: result.columns(values) for name, values in result.rows().items()}
    table = Table(box=box.SIMPLE if console.is_terminal else None, pad_edge=False)
    for name in ("", *rows["mAP"]):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *("-" if math.isnan(value) else f"{value:.1f}" for value in row.values()))
    console.print(table)


def print_groups(result: GroupsResult, console: Console | None = None, title: str = "groups") -> None:
    """Prints MPII's multi-person AP in the papers' columns: Head Shou Elb Wri Hip Knee Ank mAP, in percent."""
    console = console or Console()
    heading = f"{title}: AP of {result.people} people in {result.groups} groups, in percent"
    console.print(heading, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE if console.is_terminal else None, pad_edge=False)
    row = result.columns()
    for name in row:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*("-" if math.isnan(value) else f"{value:.1f}" for value in row.values()))
    console.print(table)
    shares = (f"{name} {_percent(float(of[-1]))}" for name, of in result.totals().items())
    console.print(", ".join(shares), highlight=False, markup=False, soft_wrap=True)


def _joint_table(result: PckResult, joints: Sequence[str], frame: box.Box | None) -> Table:
    table = Table(box=frame, pad_edge=False)
    table.add_column("joint", no_wrap=True)
    for heading in ("labelled", result.name):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count, share in zip(joints, result.counts, result.per_joint, strict=True):
        table.add_row(name, str(count), _percent(share))
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
