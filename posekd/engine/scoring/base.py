"""The result of an evaluation, and metrics as records of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from posekd.data import PoseRecords, PoseSource
from posekd.structures import Instances


class NotScoredError(ValueError):
    """A metric has nothing to score; the message says why."""


@dataclass(frozen=True)
class Score:
    """The result of a metric.

    Attributes:
        numbers: by name, the main one first.
        result: the full result, e.g. a `metrics.CocoResult`.
        note: a remark on the numbers, or empty.
    """

    numbers: Mapping[str, float]
    result: Any
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """How the people that a network has found are scored, printed and stored.

    Attributes:
        scale: maximum of the main number: 1, or 100 for percent.
        given: whether it scores persons that the dataset gives, by sample id, before duplicates are removed; otherwise
            it scores the people that the paradigm's `suppress` has kept.
        score: computes the score from dataset and people.
        write: writes the people as the dataset's own result file.
        check_file: refuses a result file that could not be written, before an evaluation rather than after it.
        score_file: from the dataset's settings, its labels (None where the metric reads them itself) and a result file
            to the score, without a network or images.
        values: the score as plain values for JSON, for a file of its own.
        show: prints the score's tables: (score, console, title).
        curve: draws the score over its threshold: (score, path, title); None for a metric without one.
        folder: whether `write` can fill a folder, with several files.
        boxes: name of the metric of boxes that goes with it, for networks that detect people: it scores all the boxes
            found, before people are removed; None where the dataset has none.

    Raises:
        NotScoredError: by `score` and `score_file`, where the labels do not allow a score.
    """

    scale: float
    given: bool
    score: Callable[[PoseSource, Instances], Score]
    write: Callable[[PoseSource, Instances, Path], None]
    check_file: Callable[[PoseSource, Path], None]
    score_file: Callable[[Any, PoseRecords | None, Path], Score]
    values: Callable[[Score], dict[str, Any]]
    show: Callable[[Score, Console, str], None]
    curve: Callable[[Score, Path, str], None] | None = None
    folder: bool = False
    boxes: str | None = None


@dataclass(frozen=True)
class Report:
    """An evaluation.

    Attributes:
        scores: name of each metric (`scoring.METRICS`) -> what it says, the dataset's first one first; without those
            that nothing could be scored by.
        found: the people that the first metric scores: given persons, or people found without duplicates.
        count: rows that went through the network.
        unit: what a row is: `person` (a crop) or `image`.
        metrics: names of the dataset's metrics; the first decides which network is the best.
        seconds: wall-clock time of loading, network, decoding and scoring.
        note: a remark on the numbers, or empty.
    """

    scores: Mapping[str, Score]
    found: Instances
    count: int
    unit: str
    metrics: tuple[str, ...]
    seconds: float = 0.0
    note: str = ""

    @property
    def main(self) -> Score | None:
        """The score by which networks are compared: that of the dataset's first metric; None where it has none."""
        return self.scores.get(self.metrics[0]) if self.metrics else None

    def numbers(self) -> dict[str, float] | None:
        """All scores by name, the main one first; None where the main metric could score nothing."""
        if self.main is None:
            return None
        return {name: value for score in self.scores.values() for name, value in score.numbers.items()}
