"""Curves as pictures: loss and validation score from the logs of one or several runs, and PCK over its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posekd.metrics import PckResult

Records = Sequence[Mapping[str, Any]]
# colour-blind safe (Okabe and Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_curves(runs: Mapping[str, Records], path: Path) -> None:
    """Draws the training loss (left) and the main validation score (right) of each run against the step.

    Args:
        runs: name of a run -> the records of its `log.jsonl`.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    name_of_score = "AP"
    for index, (name, records) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
        steps, losses = _label_loss(records)
        loss_axes.plot(steps, losses, color=colour, label=name, lw=1.2)
        scored = [r for r in records if r["kind"] == "validation"]
        name_of_score = next((r["main"] for r in scored if "main" in r), name_of_score)
        score_axes.plot(
            [r["step"] for r in scored],
            [r[name_of_score] for r in scored],
            color=colour,
            label=name,
            marker="o",
            ms=3.5,
            lw=1.2,
        )
    loss_axes.set(xlabel="step", ylabel="label loss in training, unweighted", yscale="log")
    percent = name_of_score.startswith("PCK")
    score_axes.set(xlabel="step", ylabel=f"validation {name_of_score}", ylim=(0, 100 if percent else 1))
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    figure_to_png(figure, path)


def plot_pck(result: PckResult, path: Path, title: str = "") -> None:
    """Draws the share of joints found against the threshold, with the area under the curve.

    Args:
        result: what to draw.
        path: the PNG to write.
        title: above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    kind, _, threshold = result.name.partition("@")
    axes.plot(result.thresholds, result.curve, color=COLOURS[0], lw=1.6)
    axes.fill_between(result.thresholds, result.curve, color=COLOURS[0], alpha=0.12, label=f"AUC {result.auc:.1f} %")
    axes.plot(
        float(threshold), result.mean, "o", color=COLOURS[1], clip_on=False, label=f"{result.name} {result.mean:.1f} %"
    )
    unit = "head size" if kind == "PCKh" else "torso"
    axes.set(xlabel=f"threshold, in units of the {unit}", ylabel=f"{kind} (%)", ylim=(0, 100), title=title)
    axes.set_xlim(0, max(result.thresholds[-1], float(threshold)))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure_to_png(figure, path)


def _label_loss(records: Records) -> tuple[list[int], list[float]]:
    """Steps, and a running mean of the unweighted label term, which all methods share (else of the loss)."""
    weight = next((r["weights"].get("labels", 0) for r in records if r["kind"] == "start"), 0)
    train = [r for r in records if r["kind"] == "train"]
    values = [r["labels"] / weight if weight and "labels" in r else r["loss"] for r in train]
    window = max(1, len(values) // 40)
    means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]
    return [r["step"] for r in train], means


def figure_to_png(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Saves a figure, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")
