"""What an inspection found, for reading: a table and sentences, or a line or two."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from posekd.data.inspection import Facts, Judgement
from posekd.data.inspection.facts import PERCENTILES


def print_facts(facts: Facts, judgements: Sequence[Judgement], console: Console, title: str) -> None:
    """Prints all that is known of a dataset, and what looks wrong in it.

    Args:
        facts: what it holds.
        judgements: what looks wrong.
        console: where to; without a terminal no frames and no colour.
        title: above it.
    """

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"{title}: {_counts(facts)}")
    say(f"boxes (width x height in pixels): {_boxes(facts)}")
    edges = [" - ".join(facts.skeleton.keypoints[k] for k in edge) for edge in facts.skeleton.edges]
    say(f"edges: {_few(edges) if edges else 'none, so only points are drawn'}")
    pairs = [f"{a} | {b}" for a, b in facts.pairs]
    say(f"mirror pairs, {facts.pairs_from}: {_few(pairs) if pairs else 'none'}")
    say(f"OKS sigmas: {facts.sigmas_from}")
    console.print(_labels_table(facts, box.SIMPLE if console.is_terminal else None))
    if not judgements:
        say("nothing looks wrong.")
    for judgement in judgements:
        say(f"{'refused' if judgement.refused else 'look at this'}: {judgement}")
        if judgement.refused:
            say(f"  (a recipe with `acknowledged: [{judgement.kind}]` trains all the same)")


def short_lines(facts: Facts, judgements: Sequence[Judgement], title: str) -> list[str]:
    """The same in a line, and one for each judgement."""
    labels = facts.labels
    least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    each = f"{least} labels each" if least == most else f"{least} to {most} labels each"
    line = (
        f"{title}: {_counts(facts)}; {facts.skeleton.num_keypoints} keypoints, {each}; boxes about "
        f"{_size(facts, 1)} pixels; {len(facts.pairs)} mirror pairs; OKS sigmas {facts.sigmas_from}"
    )
    return [line, *(f"  {'refused' if judgement.refused else 'note'}: {judgement}" for judgement in judgements)]


def _counts(facts: Facts) -> str:
    text = f"{facts.images} images, {facts.people} people"
    if facts.labelled_people != facts.people:
        text += f" ({facts.labelled_people} with labels)"
    if facts.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts.left_out.items())
        text += f"; left out: {reasons}"
    return text


def _size(facts: Facts, which: int) -> str:
    return " x ".join(f"{side:.0f}" for side in facts.box_sizes[which])


def _boxes(facts: Facts) -> str:
    small, median, large = (_size(facts, i) for i in range(len(PERCENTILES)))
    low, middle, high = (f"{value:.2f}" for value in facts.aspects)
    return f"median {median}, 90 % within {small} to {large}; width over height {middle} ({low} to {high})"


def _labels_table(facts: Facts, frame: box.Box | None) -> Table:
    table = Table(box=frame, pad_edge=False)
    table.add_column("keypoint", no_wrap=True)
    for heading in ("labelled", "visible", "occluded", "of people", "sigma"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = zip(
        facts.skeleton.keypoints, facts.labels, facts.visible, facts.occluded, facts.skeleton.sigmas, strict=True
    )
    for name, labels, visible, occluded, sigma in rows:
        share = f"{labels / max(facts.people, 1):.0%}"
        table.add_row(name, str(labels), str(visible), str(occluded), share, f"{sigma:.3f}")
    return table


def _few(texts: Sequence[str], count: int = 6) -> str:
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more
