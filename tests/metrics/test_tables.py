"""The per-keypoint table, by hand and on paper."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from posekd.metrics import CocoResult
from posekd.metrics.keypoint_table import KeypointScore, keypoint_scores
from posekd.viz.tables import print_result

AREA, SIGMA = 400.0, 0.05  # similarity exp(-d^2 / 8): 0.5 at 2.35 px, 0.75 at 1.52 px


def entry(*points):
    return {"keypoints": [v for p in points for v in p], "area": AREA}


def test_a_keypoint_is_scored_over_the_matched_people_who_have_it_labelled():
    people = [entry((0, 0, 2), (0, 0, 0)), entry((0, 0, 1), (9, 9, 2)), entry((0, 0, 2), (0, 0, 2))]
    found = [entry((2, 0, 0.9), (5, 5, 0.9)), entry((0, 4, 0.9), (9, 9, 0.9))]
    first, second = keypoint_scores(["p", "q"], [SIGMA] * 2, people, zip(people[:2], found, strict=True))
    assert (first.name, first.labelled, first.matched) == ("p", 3, 2)
    assert first.similarity == pytest.approx((math.exp(-0.5) + math.exp(-2)) / 2)
    assert (first.share_50, first.share_75) == (0.5, 0)  # 0.607 and 0.135
    assert first.recall == pytest.approx(1 / 3)
    assert first.median_error == 3
    assert (second.labelled, second.matched, second.similarity, second.recall) == (2, 1, 1, 0.5)


def test_distances_of_the_docstring():
    """At 1.18 and 0.76 times 2 sigma sqrt(area) the similarity is 0.5 and 0.75."""
    unit = 2 * SIGMA * math.sqrt(AREA)
    who = [entry((0, 0, 2))]
    for factor, similarity in ((1.18, 0.5), (0.76, 0.75)):
        found = [entry((factor * unit, 0, 1))]
        (row,) = keypoint_scores(["p"], [SIGMA], who, zip(who, found, strict=True))
        assert row.similarity == pytest.approx(similarity, abs=2e-3)


def test_nobody_matched_and_nobody_labelled():
    people = [entry((0, 0, 2), (0, 0, 0))]
    first, second = keypoint_scores(["p", "q"], [SIGMA] * 2, people, [])
    assert (first.labelled, first.matched, first.recall) == (1, 0, 0)
    assert math.isnan(first.similarity)
    assert second.labelled == 0
    assert math.isnan(second.recall)


def shown(terminal: bool, width: int = 80) -> str:
    rows = (
        KeypointScore("nose", 3, 2, 0.5, 0.5, 0.25, 0.333, 1.25),
        KeypointScore("ear", 0, 0, *[math.nan] * 5),
    )
    numbers = (0.7, 0.9, 0.8, -1.0, 0.75, 0.71, 0.91, 0.81, -1.0, 0.76)
    result = CocoResult(*numbers, predictions=4, keypoints=rows, note="a note")
    stream = io.StringIO()
    print_result(result, Console(file=stream, force_terminal=terminal, width=width), "model [x]")
    return stream.getvalue()


def test_plain_columns_without_a_terminal():
    lines = [line.split() for line in shown(terminal=False).splitlines()]
    assert lines[0] == ["model", "[x]:", "0", "people,", "4", "predictions"]
    assert lines[1] == ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]
    assert lines[2] == [
        "0.7000",
        "0.9000",
        "0.8000",
        "-",
        "0.7500",
        "0.7100",
        "0.9100",
        "0.8100",
        "-",
        "0.7600",
    ]
    assert ["nose", "3", "2", "0.333", "0.500", "0.500", "0.250", "1.2"] in lines
    assert ["ear", "0", "0", "-", "-", "-", "-", "-"] in lines
    assert lines[-1] == ["note:", "a", "note"]
    assert shown(terminal=False).isascii()


def test_a_terminal_gets_a_frame():
    assert "─" in shown(terminal=True)
