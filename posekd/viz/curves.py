"""Plots of loss and validation score from the logs of one or several runs, and of PCK over its threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekd.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from posekd.metrics import PckResult

Record = Mapping[str, Any]
Records = Sequence[Record]
# colour-blind safe (Okabe and Ito)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_curves(runs: Mapping[str, Records], path: Path) -> None:
    """Draws `curves_figure` of runs into a PNG.

    Args:
        runs: name of a run -> the records of its `log.jsonl`.
        path: the PNG to write.
    """
    figure_to_png(curves_figure(runs), path)


def curves_figure(runs: Mapping[str, Records], colours: Mapping[str, str] | None = None) -> Figure:
    """Draws the label loss in training (left) and the main validation score (right) of each run against the step.

    The label loss is that per labelled person, so that runs with few labels can be compared to runs with many: a
    batch's mean counts those without labels as 0. A run without a label term shows its whole loss (see the legend).

    Args:
        runs: name of a run -> the records of its `log.jsonl`.
        colours: of the runs, by name; `COLOURS` in their order if None.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    for index, (name, records) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)] if colours is None else colours[name]
        style: dict[str, Any] = {"color": colour, "lw": 1.2}
        weight = _label_weight(records)
        steps, losses = _training_loss(records, weight)
        loss_axes.plot(steps, losses, label=name if weight else f"{name} (whole loss)", **style)
        main = _main_score(records)
        scores = [(r["step"], r[main]) for r in records if r["kind"] == "validation"]
        score_axes.plot([s for s, _ in scores], [v for _, v in scores], label=name, marker="o", ms=3.5, **style)
    loss_axes.set(xlabel="step", ylabel="label loss per labelled person (training)", yscale="log")
    mains = list(dict.fromkeys(map(_main_score, runs.values())))
    top = max(map(_scale, runs.values()), default=1)
    score_axes.set(xlabel="step", ylabel=f"validation {', '.join(mains)}", ylim=(0, top))
    for axes in (loss_axes, score_axes):
        bare(axes)
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def plot_pck(result: PckResult, path: Path, title: str = "", *, unit: str) -> None:
    """Draws the share of keypoints found against the threshold, with the area under the curve.

    Args:
        result: what to draw.
        path: the PNG to write.
        title: above it.
        unit: what the thresholds are fractions of, e.g. `head size`, in words.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.thresholds, result.curve, color=COLOURS[0], lw=1.6)
    axes.fill_between(result.thresholds, result.curve, color=COLOURS[0], alpha=0.12, label=f"AUC {result.auc:.1f} %")
    axes.plot(
        result.threshold, result.mean, "o", color=COLOURS[1], clip_on=False, label=f"{result.name} {result.mean:.1f} %"
    )
    axes.set(xlabel=f"threshold, in units of the {unit}", ylabel=f"{result.kind} (%)", ylim=(0, 100), title=title)
    axes.set_xlim(0, max(result.thresholds[-1], result.threshold))
    bare(axes)
    axes.legend(frameon=False, loc="lower right")
    figure_to_png(figure, path)


def figure_to_png(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Saves a figure, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def bare(axes: Axes) -> None:
    """A light grid and no frame."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _main_score(records: Records) -> str:
    """Name of the score that decides which network is the best; older logs, of COCO's AP, do not say it."""
    return next((r["main"] for r in records if r["kind"] == "validation" and "main" in r), "AP")


def _scale(records: Records) -> float:
    """The perfect score: 1 or 100. Older logs do not say it: a score above 1 can only be percent."""
    validations = [r for r in records if r["kind"] == "validation"]
    percent = any(r[_main_score(records)] > 1 for r in validations if "scale" not in r)
    return max([float(r.get("scale", 1)) for r in validations] + [100.0 if percent else 1.0])


def _label_weight(records: Records) -> float:
    """The factor of the label term in the loss; 0 if there is none."""
    return next((float(r["weights"].get("labels", 0)) for r in records if r["kind"] == "start"), 0.0)


def _training_loss(records: Records, weight: float) -> tuple[list[int], list[float]]:
    """Steps, and a running mean of the label term without its weight, which all methods share (else of the loss)."""
    points = [(r["step"], _step_loss(r, weight)) for r in records if r["kind"] == "train"]
    known = [(step, value) for step, value in points if value is not None]
    values = [value for _, value in known]
    window = max(1, len(values) // 40)
    means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - window) : i + 1])]
    return [step for step, _ in known], means


def _step_loss(record: Record, weight: float) -> float | None:
    """The label loss of a step per labelled person (older logs: per person); None if no person had labels."""
    if not weight or "labels" not in record:
        return float(record["loss"])
    value = float(record["labels"]) / weight
    if "labelled" not in record or "samples" not in record:
        return value
    return value * record["samples"] / record["labelled"] if record["labelled"] else None
