"""The progress of a run: a bar or plain lines, a JSONL log, TensorBoard scalars."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from posekd.engine import distributed
from posekd.files import write_atomically

SECONDS_BETWEEN_LINES = 10.0

BatchT = TypeVar("BatchT", bound=Sized)


class RunLog:
    """Appends records to `log.jsonl` and scalars to `tensorboard/`.

    Args:
        folder: folder of the run.
        step: optimiser steps done so far. Records of later steps, which a killed run wrote and a resumed one
            will write again, are dropped.
        validated: step of the last validation; later validation records are dropped likewise.
        quiet: write nothing (a process that is not the main one).
    """

    def __init__(self, folder: Path, step: int = 0, validated: int = 0, *, quiet: bool = False) -> None:
        self.path, self._quiet = folder / "log.jsonl", quiet
        if quiet:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        last = {"validation": validated}
        kept = [record for record in read_log(self.path) if step and record["step"] <= last.get(record["kind"], step)]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds a record; its numbers become TensorBoard scalars `kind/name`."""
        if self._quiet:
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes both. A disk error is ignored, because the run may be closing after one."""
        if not self._quiet:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a `log.jsonl`; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def counted(batches: Iterable[BatchT], total: int, on_batch: Callable[[int, int], None] | None) -> Iterator[BatchT]:
    """The batches; tells `on_batch` of (elements done, `total`) when the next one is asked for.

    In a group of processes each has a share; all are assumed to be equally far.
    """
    done = 0
    for batch in batches:
        yield batch
        done = min(total, done + len(batch) * distributed.world())
        if on_batch is not None:
            on_batch(done, total)


class Ticker:
    """Progress of a known number of steps, with throughput, the share of time spent waiting for data, and ETA.

    In a terminal it is a bar; elsewhere it prints a plain line from time to time.

    Args:
        label: what is being done.
        total: number of steps.
        done: steps done before.
        console: where to draw.
        quiet: print nothing (in processes other than the main one).
    """

    def __init__(
        self, label: str, total: int, done: int = 0, console: Console | None = None, *, quiet: bool = False
    ) -> None:
        self._label, self._total, self._done = label, total, done
        self._console = console or Console(file=sys.stderr, quiet=quiet)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, completed=done, facts="")
        self._first = done
        self._start = self._window_start = time.perf_counter()
        self._samples, self._waited = 0, 0.0
        self._shown = 0.0

    def tick(self, samples: int, waited: float, loss: float, *, report: bool) -> dict[str, float]:
        """Counts one step.

        Args:
            samples: number of persons in it.
            waited: seconds of waiting for data.
            loss: its loss.
            report: close the current window: compute its figures and show them.

        Returns:
            `samples_per_s` and `data_wait` (0..1) of the window if `report`, else nothing.
        """
        self._done += 1
        self._samples += samples
        self._waited += waited
        facts: dict[str, float] = {}
        if report:
            now = time.perf_counter()
            elapsed = max(now - self._window_start, 1e-9)
            facts = {"samples_per_s": self._samples / elapsed, "data_wait": self._waited / elapsed}
            self._window_start, self._samples, self._waited = now, 0, 0.0
            self._show(facts, loss, now)
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        return facts

    def _show(self, facts: dict[str, float], loss: float, now: float) -> None:
        text = f"loss {loss:.3e}  {facts['samples_per_s']:.0f} samples/s  data {facts['data_wait']:.0%}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, facts=text)
            return
        if now - self._shown < SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._shown = now
        pace = (now - self._start) / max(1, self._done - self._first)
        left = time.strftime("%H:%M:%S", time.gmtime(pace * (self._total - self._done)))
        days = int(pace * (self._total - self._done) // 86400)
        eta = f"{days}d {left}" if days else left
        self.say(f"{self._label}  {self._done}/{self._total}  {text}  left {eta}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
