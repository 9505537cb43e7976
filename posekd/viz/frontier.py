"""Accuracy against latency: a table and a picture of students."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from posekd.viz.curves import COLOURS, bare, figure_to_png
from posekd.viz.judging import print_whole


@dataclass(frozen=True)
class Row:
    """A student as it is shown.

    Attributes:
        name: what it is.
        score: NaN for none.
        milliseconds: 10th percentile, median and 90th percentile of one image.
        params: parameters.
        macs: multiply-accumulates of one image.
        best: whether no other is as good without taking longer.
    """

    name: str
    score: float
    milliseconds: tuple[float, float, float]
    params: int
    macs: int
    best: bool


def print_frontier(rows: Sequence[Row], score_name: str, console: Console, title: str) -> None:
    """Prints the students, those on the frontier marked.

    Args:
        rows: in the order to show.
        score_name: heading of the score.
        console: where to.
        title: above the table.
    """
    console.print(title, highlight=False, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE if console.is_terminal else None, pad_edge=False)
    table.add_column("student", overflow="fold")
    for heading in ("ms an image", "10 to 90 %", score_name, "parameters", "compute"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        low, median, high = row.milliseconds
        score = "-" if math.isnan(row.score) else f"{row.score:.4f}"
        params, macs = f"{row.params / 1e6:.2f} M", f"{row.macs / 1e9:.3f} GMAC"
        mark = "frontier" if row.best else ""
        table.add_row(row.name, f"{median:.2f}", f"{low:.2f} to {high:.2f}", score, params, macs, mark)
    print_whole(table, console)


def plot_frontier(rows: Sequence[Row], score_name: str, path: Path, title: str) -> None:
    """Draws score against latency, with the times' spread, and a line through those on the frontier.

    Args:
        rows: of the students; those without a score are left out.
        score_name: beside the axis.
        path: the PNG to write.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = sorted((row for row in rows if not math.isnan(row.score)), key=lambda row: row.milliseconds[1])
    for row in shown:
        low, median, high = row.milliseconds
        colour = COLOURS[0] if row.best else "#888888"
        axes.errorbar(
            median, row.score, xerr=[[median - low], [high - median]], fmt="o", color=colour, ms=5, lw=0.8, capsize=2
        )
        axes.annotate(row.name, (median, row.score), xytext=(5, 5), textcoords="offset points", fontsize=7)
    best = [row for row in shown if row.best]
    axes.step(
        [row.milliseconds[1] for row in best], [row.score for row in best], where="post", color=COLOURS[0], lw=1.2
    )
    axes.set(xlabel="milliseconds an image (median, 10 to 90 %)", ylabel=score_name, title=title)
    axes.title.set_fontsize(9)
    axes.margins(x=0.15, y=0.15)
    bare(axes)
    figure_to_png(figure, path)
