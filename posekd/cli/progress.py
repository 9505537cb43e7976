"""A progress bar on standard error, only in a terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from posekd.cli import is_main_process


class Bar:
    """A context manager that gives a function of (done, total); a total of None is not known.

    Args:
        label: what is being done.
        unit: show the rate too, in these per second.
    """

    def __init__(self, label: str, unit: str | None = None) -> None:
        console = Console(stderr=True)
        columns: list[ProgressColumn] = [TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        if unit is not None:
            columns.append(_Rate(unit))
        shown = console.is_terminal and is_main_process()
        self._progress = Progress(*columns, console=console, transient=True, disable=not shown)
        self._task = self._progress.add_task(label, total=None)

    def __enter__(self) -> Callable[[int, int | None], None]:
        self._progress.start()
        return lambda done, total: self._progress.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Rate(ProgressColumn):
    """`12.3 frames/s`, over the last seconds."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")
