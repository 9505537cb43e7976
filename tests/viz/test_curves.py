"""What the curves of a run show, from made-up logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from posekd.metrics import pck
from posekd.viz import curves
from posekd.viz.curves import plot_curves, plot_pck

START = {"kind": "start", "step": 0, "weights": {"labels": 0.5, "teacher": 0.5}}


def train(step: int, labels: float, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 9.0, "labels": labels, **values}


def validation(step: int, main: str, score: float, **values: Any) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "main": main, main: score, **values}


@pytest.fixture
def axes(monkeypatch):
    """Draws and gives the two axes."""
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "figure_to_png", lambda figure, path: figures.append(figure))

    def draw(**runs: list[dict[str, Any]]) -> Any:
        plot_curves(runs, Path("unwritten.png"))
        return figures[-1].axes

    return draw


def points(axes: Any) -> list[tuple[float, float]]:
    return list(zip(*(values.tolist() for values in map(np.asarray, axes.lines[0].get_data())), strict=True))


class TestTrainingLoss:
    def test_it_is_the_label_term_without_its_weight(self, axes):
        left, _ = axes(run=[START, train(1, 0.2), train(2, 0.1)])
        assert points(left) == [(1, 0.4), (2, 0.2)]
        assert left.get_ylabel() == "label loss per labelled person (training)"

    def test_it_is_per_labelled_person_where_the_log_counts_them(self, axes):
        """A mean over 8 persons of whom 2 have labels is a quarter of what the two cost."""
        log = [START, train(1, 0.2, samples=8, labelled=2), train(2, 0.2, samples=8, labelled=8)]
        assert points(axes(run=log)[0]) == [(1, 1.6), (2, 0.4)]

    def test_a_step_without_labels_is_left_out(self, axes):
        log = [START, train(1, 0.2, samples=8, labelled=8), train(2, 0.0, samples=8, labelled=0)]
        log.append(train(3, 0.1, samples=8, labelled=8))
        assert points(axes(run=log)[0]) == [(1, 0.4), (3, 0.2)]

    def test_a_run_without_a_label_term_shows_its_loss_and_says_so(self, axes):
        left, _ = axes(run=[{**START, "weights": {"labels": 0, "teacher": 1}}, train(1, 0.2, samples=8, labelled=2)])
        assert points(left) == [(1, 9.0)]
        assert left.lines[0].get_label() == "run (whole loss)"


class TestScore:
    @pytest.mark.parametrize(
        ("record", "top"),
        [
            (validation(5, "AP", 0.4, scale=1), 1),
            (validation(5, "PCK@0.2", 40.0, scale=100), 100),
            (validation(5, "accuracy", 0.4, scale=100), 100),  # of an untrained network
            (validation(5, "PCK of something in 0..1", 0.4, scale=1), 1),
            (validation(5, "accuracy", 40.0), 100),  # older logs have no scale
            (validation(5, "PCK@0.2", 0.4), 1),
            ({"kind": "validation", "step": 5, "AP": 0.4}, 1),  # and the oldest no main score
        ],
    )
    def test_the_log_says_what_a_perfect_score_is(self, axes, record, top):
        _, right = axes(run=[START, record])
        assert right.get_ylim() == (0, top)
        assert points(right) == [(5, record[record.get("main", "AP")])]
        assert right.get_ylabel() == f"validation {record.get('main', 'AP')}"

    def test_one_score_above_1_makes_an_old_log_percent(self, axes):
        _, right = axes(run=[validation(1, "PCK@0.2", 0.0), validation(2, "PCK@0.2", 3.0)])
        assert right.get_ylim() == (0, 100)

    def test_a_run_that_has_just_begun_has_no_points(self, axes):
        left, right = axes(run=[START])
        assert (points(left), points(right), right.get_ylim()) == ([], [], (0, 1))


def test_the_unit_of_thresholds_is_what_the_caller_says(tmp_path, monkeypatch):
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "figure_to_png", lambda figure, path: figures.append(figure))
    result = pck(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)), np.ones((1, 3)), [10.0])
    plot_pck(result, tmp_path / "pck.png", unit="forearm")
    assert figures[0].axes[0].get_xlabel() == "threshold, in units of the forearm"
