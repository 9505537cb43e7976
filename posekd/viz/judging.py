"""Errors, comparisons and runs of several seeds, for reading: tables in a terminal, plain columns elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from posekd.metrics.errors import THRESHOLDS, ErrorResult

WIDE = 160  # columns of a file


def print_errors(result: ErrorResult, console: Console) -> None:
    """Prints medians, 90th percentiles and PCK of each keypoint.

    Args:
        result: what to print.
        console: where to; without a terminal no frames and no colour.
    """
    _say(
        console,
        f"errors over all {result.people} labelled people, {result.missed} of them not found; then relative to the "
        f"{result.length}, and PCK at 0.05, 0.1 and 0.2 of it",
    )
    table = _table(console, "keypoint")
    headings = ("labels", "missed", "median px", "90 % px", "median", "90 %", *(f"@{t:g}" for t in THRESHOLDS))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*result.keypoints, result.total):
        pixels = (_number(value, 1) for value in (row.median, row.p90))
        relative = (_number(value, 3) for value in (row.median_relative, row.p90_relative))
        shares = (_number(row.pck[t], 3) for t in THRESHOLDS)
        table.add_row(row.name, str(row.labelled), str(row.missed), *pixels, *relative, *shares)
    print_whole(table, console)


def print_ap(ap: Mapping[float, float], console: Console) -> None:
    """Prints AP at several factors on the sigmas, in a line."""
    if ap:
        names = {0.5: "half", 1.0: "the sigmas given", 2.0: "double"}
        parts = [f"{value:.4f} at {names.get(factor, f'{factor:g} times')}" for factor, value in ap.items()]
        _say(console, f"AP {', '.join(parts)}")


def print_difference(name: str, before: float, after: float, low: float, high: float, console: Console) -> None:
    """Prints how a number differs between two networks, with its interval and what that means."""
    told = "a gain" if low > 0 else "a loss" if high < 0 else "no certain difference"
    _say(
        console,
        f"{name}: {before:.4f} -> {after:.4f}, {after - before:+.4f} (95 % interval over images {low:+.4f} to "
        f"{high:+.4f}): {told}",
    )


def print_seeds(scores: Mapping[int, Mapping[str, float]], console: Console, title: str) -> None:
    """Prints the scores of several seeds, their mean, spread and interval.

    Args:
        scores: seed -> score by name.
        console: where to.
        title: above the table.
    """
    names = list(next(iter(scores.values())))
    _say(console, title)
    table = _table(console, "seed")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for seed, row in scores.items():
        table.add_row(str(seed), *(_number(row[name], 4) for name in names))
    summaries = [summary([row[name] for row in scores.values()]) for name in names]
    for i, heading in enumerate(("mean", "std of a run")):
        table.add_row(heading, *(_number(s[i], 4) for s in summaries))
    table.add_row("95 % of mean", *(f"+-{_number(s[2], 4)}" for s in summaries))
    print_whole(table, console)


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard deviation of a value, and half the 95 % interval of the mean (Student's t); NaN for one value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, spread, student_t(n - 1) * spread / math.sqrt(n)


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 97.5 %, 1 to 10 degrees of freedom


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; beyond ten degrees of freedom by its expansion about the normal."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _table(console: Console, first: str) -> Table:
    table = Table(box=box.SIMPLE if console.is_terminal else None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def print_whole(table: Table, console: Console) -> None:
    """Prints a table whole where no terminal limits it."""
    own = console.width
    if not console.is_terminal:
        console.width = max(own, WIDE)
    console.print(table)
    console.width = own


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return "missed" if math.isinf(value) else f"{value:.{digits}f}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
