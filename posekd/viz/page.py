"""Pieces of a page of HTML that needs nothing beside itself: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JPEG_QUALITY = 85

_STYLE = """
:root { --ink: #1d2430; --soft: #5b6675; --line: #dfe4ea; --paper: #ffffff; --tint: #f5f7fa; --bar: #cfe3f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333b47; --paper: #14181f; --tint: #1c222b; --bar: #24405c; }
  svg { background: #fff; border-radius: 6px; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 0 20px 60px; }
header { padding: 34px 0 10px; }
h1 { margin: 0 0 4px; font-size: 27px; line-height: 1.2; }
h2 { margin: 44px 0 6px; font-size: 20px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { margin: 22px 0 4px; font-size: 15px; }
p { margin: 6px 0; max-width: 80ch; }
.soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0 0; font-size: 14px; }
a { color: #2b78b9; text-decoration: none; }
a:hover { text-decoration: underline; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child, .left th { text-align: left; }
.side { display: flex; flex-wrap: wrap; gap: 0 44px; align-items: flex-start; }
tbody tr:hover { background: var(--tint); }
td.best { font-weight: 700; }
.chip { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.stack { display: flex; height: 22px; min-width: 340px; border-radius: 4px; overflow: hidden; background: var(--tint); }
.stack span { display: block; height: 100%; }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin: 8px 0; }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
.row { display: grid; gap: 8px; margin: 8px 0 18px; }
figure { margin: 0; }
figure img { display: block; width: 100%; border-radius: 5px; }
figcaption { font-size: 12.5px; color: var(--soft); padding: 2px 1px; overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 14px; margin: 8px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: above, and of the window.
        lead: HTML below the title.
        sections: heading and HTML of each; those without HTML are left out.
    """
    shown = [(heading, content) for heading, content in sections if content]
    links = "".join(f'<a href="#s{i}">{text(heading)}</a>' for i, (heading, _) in enumerate(shown))
    body = "".join(f'<section id="s{i}"><h2>{text(h)}</h2>{content}</section>' for i, (h, content) in enumerate(shown))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><header><h1>{text(title)}</h1>{lead}<nav>{links}</nav></header>{body}</main></body></html>\n"
    )


def text(value: object) -> str:
    """Plain text as HTML."""
    return html.escape(str(value))


def paragraph(content: object, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=soft' if soft else ''}>{text(content)}</p>"


def chip(name: str, colour: str) -> str:
    """A name with its colour before it."""
    return f'<span class="chip" style="background:{colour}"></span>{text(name)}'


def beside(parts: Iterable[str]) -> str:
    """Pieces beside each other, as far as the page is wide enough."""
    return '<div class="side">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: bool = False) -> str:
    """A table of cells that are HTML already; a cell may be a whole `<td>`; `left`: all headings are at the left."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    kind = ' class="left"' if left else ""
    return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def bar_cells(values: Sequence[float], digits: int = 3, high_is_good: bool = True) -> list[str]:
    """Cells with a bar behind each number (of values in 0..1), the best one in bold."""
    known = [value for value in values if math.isfinite(value)]
    best = (max(known) if high_is_good else min(known)) if len(known) > 1 else None
    cells = []
    for value in values:
        share = 100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
        style = f"background:linear-gradient(90deg,var(--bar) {share:.1f}%,transparent {share:.1f}%)"
        mark = ' class="best"' if best is not None and value == best else ""
        cells.append(f'<td{mark} style="{style}">{number(value, digits)}</td>')
    return cells


def number(value: float | None, digits: int = 3) -> str:
    """A number; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return "missed" if math.isinf(value) else f"{value:.{digits}f}"


def stack(shares: Mapping[str, float], colours: Mapping[str, str]) -> str:
    """A bar of shares (0..1) beside each other."""
    parts = "".join(
        f'<span style="width:{100 * share:.2f}%;background:{colours[name]}" title="{text(name)} {share:.1%}"></span>'
        for name, share in shares.items()
        if math.isfinite(share)
    )
    return f'<div class="stack">{parts}</div>'


def key(colours: Mapping[str, str]) -> str:
    """What colours stand for."""
    items = "".join(f'<span><i style="background:{colour}"></i>{text(name)}</span>' for name, colour in colours.items())
    return f'<div class="key">{items}</div>'


def pictures(tiles: Sequence[tuple[np.ndarray, str]], columns: int | None = None) -> str:
    """Pictures (uint8 RGB) beside each other, each with its caption."""
    items = "".join(
        f'<figure><img alt="{text(caption)}" src="{data_uri(image)}"><figcaption>{text(caption)}</figcaption></figure>'
        for image, caption in tiles
    )
    return f'<div class="row" style="grid-template-columns:repeat({columns or len(tiles)},minmax(0,1fr))">{items}</div>'


def data_uri(image: np.ndarray) -> str:
    """A picture (uint8 RGB) as a JPEG within its address."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def svg(figure: Figure) -> str:
    """A figure as SVG in the page, its letters as paths."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "posekd"}):  # the same figure, the same names within it
        figure.savefig(stream, format="svg", metadata={"Date": None})
    content = stream.getvalue()
    return content[content.index("<svg") :]


def facts(pairs: Mapping[str, object]) -> str:
    """Names and values; values that are None are left out."""
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in pairs.items() if v is not None)
    return f"<dl>{items}</dl>"
