"""The page of `posekd report`: its sections, from what is known of each network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from posekd.engine.cases import draw_person
from posekd.engine.report import Judged, row_of, worst_people
from posekd.engine.report_maps import heatmap_tiles
from posekd.metrics.error_kinds import KINDS
from posekd.viz import page
from posekd.viz.curves import COLOURS, curves_figure

KIND_COLOURS = dict(zip(KINDS, ("#4c9f70", "#f2c14e", "#5c80bc", "#9d6ab8", "#d1495b", "#8d99ae"), strict=True))
PCK = 0.1  # of the longer side of the box
_RECIPE = ("student", "method", "teacher", "train_data", "loader", "optim", "schedule", "train", "seed")


def report_page(title: str, judged: Sequence[Judged], remarks: Sequence[str], images: int = 6) -> str:
    """The whole page as HTML.

    Args:
        title: above.
        judged: the networks, evaluated on the same data; the last one's worst people are shown.
        remarks: sentences below the title.
        images: people shown in each section of pictures.
    """
    colours = {one.subject.name: COLOURS[i % len(COLOURS)] for i, one in enumerate(judged)}
    known = [one for one in judged if one.verdict is not None]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lead = page.paragraph(f"{_data_in_words(judged)}; written {now}", soft=True)
    lead += "".join(page.paragraph(remark) for remark in remarks)
    sections = [
        ("At a glance", _summary(judged, colours)),
        ("Training", _curves(judged, colours)),
        ("By keypoint", _by_keypoint(known, colours)),
        ("Kinds of errors", _kinds(known, colours)),
        ("The worst people", _worst(known, images)),
        ("Where teacher and labels disagree most", _disagreements(known, images)),
        ("Heatmaps", _heatmaps(known, max(2, images // 2))),
        ("Where it comes from", _facts(judged)),
    ]
    return page.page(title, lead, sections)


def _data_in_words(judged: Sequence[Judged]) -> str:
    first = judged[0]
    if first.verdict is None:
        return f"{first.report.count} rows without labels"
    people = len(first.verdict.found.truth)
    images = len(np.unique(first.verdict.found.image_ids))
    return f"{people} labelled people in {images} images"


def _heads(judged: Sequence[Judged], colours: dict[str, str]) -> list[str]:
    return [page.chip(one.subject.name, colours[one.subject.name]) for one in judged]


def _summary(judged: Sequence[Judged], colours: dict[str, str]) -> str:
    """One line for each network."""
    names = list(dict.fromkeys(name for one in judged for name in list(one.report.numbers() or {})[:3]))
    headings = ["network", *map(page.text, names), f"PCK@{PCK:g}", "median error", "not found", "parameters", "compute",
                "latency"]  # fmt: skip
    rows = []
    for one, head in zip(judged, _heads(judged, colours), strict=True):
        numbers = one.report.numbers() or {}
        cells = [head, *(page.number(numbers.get(name)) for name in names)]
        if one.verdict is None:
            cells += ["–"] * 3
        else:
            total = one.verdict.by_box.total
            cells += [page.number(total.pck[PCK]), f"{page.number(total.median, 1)} px", str(one.verdict.by_box.missed)]
        cells += ["–", "–"] if one.profile is None else [
            f"{one.profile.params / 1e6:.2f} M", f"{one.profile.macs / 1e9:.2f} GMAC",
        ]  # fmt: skip
        cells.append("–" if one.latency is None else f"{1e3 * one.latency.median:.1f} ms")
        rows.append(cells)
    told = (
        f"PCK@{PCK:g}: share of labelled keypoints within {PCK:g} of the longer side of the box, over all labelled "
        "people; the median error likewise. Latency: one image in float32 on the machine that wrote this page."
    )
    return page.table(headings, rows) + page.paragraph(told, soft=True)


def _curves(judged: Sequence[Judged], colours: dict[str, str]) -> str:
    runs = {one.subject.name: one.subject.log for one in judged if any(r["kind"] == "train" for r in one.subject.log)}
    return page.svg(curves_figure(runs, colours)) if runs else ""


def _by_keypoint(judged: Sequence[Judged], colours: dict[str, str]) -> str:
    """AP by each keypoint alone, PCK and medians."""
    if not judged:
        return ""
    heads = _heads(judged, colours)
    scored = [one for one in judged if one.ap]
    parts = []
    if scored:
        rows = [
            [page.text(name), *page.bar_cells([one.ap.get(name, math.nan) for one in scored])]
            for name in scored[0].source.records.skeleton.keypoints
        ]
        told = "AP if the keypoint were the only one that is labelled."
        scored_heads = [head for head, one in zip(heads, judged, strict=True) if one.ap]
        parts.append(f"<h3>AP</h3>{page.paragraph(told, soft=True)}{page.table(['keypoint', *scored_heads], rows)}")
    tables = [one.verdict.by_box for one in judged if one.verdict is not None]
    lines = [[table.total, *table.keypoints] for table in tables]
    shares = [
        [page.text(line[0].name), str(line[0].labelled), *page.bar_cells([keypoint.pck[PCK] for keypoint in line])]
        for line in zip(*lines, strict=True)
    ]
    medians = [
        [page.text(line[0].name), *(page.number(keypoint.median, 1) for keypoint in line)]
        for line in zip(*lines, strict=True)
    ]
    parts.append(f"<h3>PCK@{PCK:g} of the box</h3>{page.table(['keypoint', 'labels', *heads], shares)}")
    parts.append(f"<h3>Median error in pixels</h3>{page.table(['keypoint', *heads], medians)}")
    return page.beside(parts)


def _kinds(judged: Sequence[Judged], colours: dict[str, str]) -> str:
    """Jitter, inversion, swap, miss: all keypoints together, then each."""
    rows, known = [], [one for one in judged if one.kinds is not None]
    if not known:
        return ""
    for one, head in zip(known, _heads(known, colours), strict=True):
        assert one.kinds is not None
        shares = one.kinds.shares()
        numbers = [f"{100 * shares[kind]:.1f} %" for kind in KINDS]
        rows.append([head, f'<td style="text-align:left">{page.stack(shares, KIND_COLOURS)}</td>', *numbers])
    told = (
        "Of all labelled keypoints, after Ronchi and Perona (ICCV 2017): good, similarity 0.85 or more; jitter, 0.5 to "
        "0.85; inversion, at the mirror partner of the same person; swap, at another person; miss, near nothing; and "
        "keypoints of people of whom nothing was found."
    )
    each = []
    names = known[0].source.records.skeleton.keypoints
    for k, name in enumerate(names):
        bars = [
            f'<td style="text-align:left;min-width:200px">{page.stack(one.kinds.shares_of(k), KIND_COLOURS)}</td>'
            for one in known
            if one.kinds is not None
        ]
        each.append([page.text(name), *bars])
    return (
        page.paragraph(told, soft=True)
        + page.key(KIND_COLOURS)
        + page.table(["network", "", *KINDS], rows)
        + "<h3>Each keypoint</h3>"
        + page.table(["keypoint", *_heads(known, colours)], each, left=True)
    )


def _people(chosen: Judged, judged: Sequence[Judged], rows: Sequence[int]) -> str:
    """Labels and what each network has found, a line for each person, or for two where two have room."""
    assert chosen.verdict is not None
    lines: list[list[tuple[np.ndarray, str]]] = []
    for row in rows:
        sample = int(chosen.verdict.found.sample_ids[row])
        labels, _ = draw_person(chosen.source, chosen.verdict.found, row)
        tiles = [(labels, f"labels, {_image_name(chosen, row)}")]
        for one in judged:
            place = row_of(one, sample)
            if place is None or one.verdict is None:
                continue
            error = float(one.verdict.found.mean_errors()[place])
            off = f"{error:.3f} of the box off" if math.isfinite(error) else "not found"
            tiles.append((draw_person(one.source, one.verdict.found, place)[1], f"{one.subject.name}, {off}"))
        lines.append(tiles)
    if all(len(tiles) == 2 for tiles in lines):
        lines = [[tile for tiles in lines[i : i + 2] for tile in tiles] for i in range(0, len(lines), 2)]
    widest = max(map(len, lines), default=1)
    return "".join(page.pictures(tiles, max(3, widest)) for tiles in lines)


def _image_name(judged: Judged, row: int) -> str:
    assert judged.verdict is not None
    records = judged.source.records
    place = int(np.flatnonzero(records.image_ids == judged.verdict.found.image_ids[row])[0])
    return judged.source.image_name(place).replace("\\", "/").split("/")[-1]


def _worst(judged: Sequence[Judged], count: int) -> str:
    if not judged:
        return ""
    last = judged[-1]
    told = f"By the mean error of {last.subject.name} over a person's labelled keypoints; people not found come first."
    return page.paragraph(told, soft=True) + _people(last, judged, worst_people(last, count))


def _disagreements(judged: Sequence[Judged], count: int) -> str:
    """People of whom the teacher says something else than the labels: wrong labels are among them."""
    teacher = next((one for one in judged if one.subject.teaches), None)
    if teacher is None:
        return ""
    told = f"By the mean error of {teacher.subject.name} against the labels. Look here for labels that are wrong."
    return page.paragraph(told, soft=True) + _people(teacher, [teacher], worst_people(teacher, count))


def _heatmaps(judged: Sequence[Judged], count: int) -> str:
    """The strongest heatmap of each pixel, of people spread over the errors of the last network."""
    if not judged or judged[-1].verdict is None:
        return ""
    last = judged[-1]
    found = last.verdict.found if last.verdict is not None else None
    assert found is not None
    order = np.argsort(found.mean_errors(), kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]
    lines = [heatmap_tiles(judged, int(found.sample_ids[row])) for row in chosen]
    if not any(lines):
        return ""
    told = (
        "The largest value over all keypoints, each picture in the scale of its own highest (at least 0.1); from the "
        f"person that {last.subject.name} found best to the worst."
    )
    return page.paragraph(told, soft=True) + "".join(
        page.pictures(tiles, max(4, len(tiles))) for tiles in lines if tiles
    )


def _facts(judged: Sequence[Judged]) -> str:
    """Cards: how each network came to be, and whose weights taught it."""
    parts = []
    for one in judged:
        card = one.subject.card
        if not card:
            continue
        recipe, teacher = card.get("recipe") or {}, card.get("teacher") or {}
        pairs: dict[str, object] = {
            "network": (card.get("model") or {}).get("name"),
            "keypoints": ", ".join(one.source.records.skeleton.keypoints),
            "epoch": card.get("epoch"),
            "teacher": teacher.get("source") or teacher.get("name"),
            "teacher's licence": teacher.get("licence"),
            "teacher's keypoints": _bridge_in_words(teacher.get("keypoints")),
            **{name: _in_words(recipe[name]) for name in _RECIPE if recipe.get(name) is not None},
        }
        parts.append(f"<h3>{page.text(one.subject.name)}</h3>{page.facts(pairs)}")
    return "".join(parts)


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items() if item not in (None, {}, []))
    return str(value)


def _bridge_in_words(names: dict[str, list[str]] | None) -> str | None:
    if not names:
        return None
    told = (f"{ours} = {' + '.join(theirs) or 'none'}" for ours, theirs in names.items() if theirs != [ours])
    return ", ".join(told) or None
