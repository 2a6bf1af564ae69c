"""Charts as inline SVG: shapes and words carry the meaning, colour only helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

SHAPES = ("circle", "diamond", "square", "triangle")
COLOURS = 6
SPAN = (80.0, 316.0)  # where 0 and 100 % stand in a dot plot
NARROW = 500  # pictures wider than this scroll on a telephone
DARKEST = 0.65  # so that the number in the cell keeps its contrast


@dataclass(frozen=True)
class Point:
    """A share with the ends of its interval (None where there is none), a tooltip, a figure."""

    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map: what it stands for, its value (0 or more) and its tooltip."""

    label: str
    value: float
    note: str


@dataclass(frozen=True)
class Bin:
    """One histogram bin: its ends and how many kept and changed items fall into it."""

    low: float
    high: float
    kept: int
    changed: int


def dot_plot(
    ident: str,
    title: str,
    desc: str,
    rows: Sequence[str],
    series: Mapping[str, Mapping[str, Point]],
    chance: Mapping[str, float] | None = None,
    axis: str = "accuracy",
    left: float = SPAN[0],
) -> Markup:
    """Draw shares as dots with interval whiskers and their figures, one lane per series.

    Args:
        ident: Prefix of the element ids, unique in the page.
        title: Accessible name.
        desc: Accessible description.
        rows: Row labels, top to bottom.
        series: {series name: {row label: point}}.
        chance: Optional {row label: chance level}, drawn as a dashed tick.
        axis: What the shares are.
        left: Where 0 % stands: room for the row labels.
    """
    right, lane, gap = left + SPAN[1] - SPAN[0], 16.0, 14.0
    marks = len(series) + bool(chance)
    top = 24.0 + 18 * math.ceil(marks / 4)
    height = lane * len(series) + gap
    bottom = top + height * len(rows)
    parts: list[Markup] = []
    for index, name in enumerate(series):
        x, y = _spot(index)
        parts += [_marker(index, x, y, ""), _text(x + 12, y + 4, name)]
    if chance:
        x, y = _spot(len(series))
        parts += [_line(x, y - 6, x, y + 6, "chance"), _text(x + 12, y + 4, "chance")]
    for step in range(0, 101, 20):
        x = left + (right - left) * step / 100
        parts += [_line(x, top, x, bottom, "grid"), _text(x, bottom + 18, f"{step} %", "middle")]
    for number, row in enumerate(rows):
        start = top + number * height
        parts.append(_text(left - 10, start + height / 2 + 4, row, "end"))
        parts.append(_line(left, start + height, right, start + height, "grid"))
        if chance and row in chance:
            x = _place(chance[row], 0, 1, left, right)
            parts.append(_line(x, start + 3, x, start + height - 3, "chance"))
        for index, points in enumerate(series.values()):
            if row in points:
                y = start + gap / 2 + lane * (index + 0.5)
                parts += _dot(index, points[row], y, left, right)
                parts.append(_text(right + 14, y + 4, points[row].shown))
    parts.append(_text((left + right) / 2, bottom + 36, axis, "middle"))
    return _svg(ident, title, desc, right + 144, bottom + 44, parts)


def heat_map(
    ident: str, title: str, desc: str, rows: Mapping[str, Sequence[Cell]], per_line: int = 12
) -> Markup:
    """Draw one block of cells per row label; every cell prints its number and its per cent.

    Args:
        ident: Prefix of the element ids, unique in the page.
        title: Accessible name.
        desc: Accessible description.
        rows: {row label: its cells, in order}; a long row continues on further lines.
        per_line: Cells per line.
    """
    left, wide, tall = 84.0, 42.0, 40.0
    top = max((cell.value for cells in rows.values() for cell in cells), default=0.0)
    parts: list[Markup] = []
    y = 8.0
    for label, cells in rows.items():
        parts.append(_text(left - 10, y + 24, label, "end"))
        for number, cell in enumerate(cells):
            if number and number % per_line == 0:
                y += tall
            x = left + wide * (number % per_line)
            depth = cell.value / top if top else 0.0
            parts.append(_heat(cell, x, y, wide - 2, tall - 2, depth))
        y += tall + 8
    return _svg(ident, title, desc, left + wide * per_line + 6, y, parts)


def histogram(
    ident: str,
    title: str,
    desc: str,
    bins: Sequence[Bin],
    threshold: float | None,
    axes: tuple[str, str],
) -> Markup:
    """Draw counts (logarithmic height); changed items stand in outlined bars.

    Args:
        ident: Prefix of the element ids, unique in the page.
        title: Accessible name.
        desc: Accessible description.
        bins: Adjoining bins, left to right; at least one.
        threshold: Where to draw the labelled line, or None.
        axes: Labels of the horizontal and the vertical axis.
    """
    left, right, top, bottom = 60.0, 610.0, 56.0, 246.0
    low, high = bins[0].low, bins[-1].high
    most = max(max(item.kept, item.changed) for item in bins)
    scale = (bottom - top) / math.log10(1 + most)
    parts: list[Markup] = []
    powers = [10**power for power in range(12) if 2 * 10**power <= most]
    for count in [*powers, most]:
        y = bottom - math.log10(1 + count) * scale
        parts += [_line(left, y, right, y, "grid"), _text(left - 6, y + 4, f"{count:,}", "end")]
    for item in bins:
        parts += _bars(item, low, high, (left, right, bottom), scale)
    for value in ticks(low, high):
        x = _place(value, low, high, left, right)
        parts += [_line(x, bottom, x, bottom + 5, "axis")]
        parts += [_text(x, bottom + 18, f"{value:g}", "middle")]
    parts += [_line(left, bottom, right, bottom, "axis")]
    parts += [_text((left + right) / 2, bottom + 36, axes[0], "middle"), _text(8, 14, axes[1])]
    if threshold is not None:
        x = _place(threshold, low, high, left, right)
        side = "end" if x > (left + right) / 2 else "start"
        parts += [_line(x, top - 16, x, bottom, "threshold")]
        parts += [_text(x + (-6 if side == "end" else 6), top - 20, "threshold", side)]
    return _svg(ident, title, desc, 640, bottom + 46, parts)


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round axis values inside [low, high], 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return start + (end - start) * min(max(share, 0.0), 1.0)


def _dot(index: int, point: Point, y: float, left: float, right: float) -> list[Markup]:
    parts = []
    if point.low is not None and point.high is not None:
        low, high = (_place(end, 0, 1, left, right) for end in (point.low, point.high))
        css = f"whisker c{index % COLOURS}"
        parts = [_line(low, y, high, y, css)]
        parts += [_line(end, y - 4, end, y + 4, css) for end in (low, high)]
    return [*parts, _marker(index, _place(point.value, 0, 1, left, right), y, point.note)]


def _bars(
    item: Bin, low: float, high: float, frame: tuple[float, float, float], scale: float
) -> list[Markup]:
    left, right, bottom = frame
    x, end = (_place(edge, low, high, left, right) for edge in (item.low, item.high))
    shown = [(name, n) for name, n in (("kept", item.kept), ("changed", item.changed)) if n]
    width = (end - x) / max(len(shown), 1)
    parts = []
    for number, (name, n) in enumerate(shown):
        tall = math.log10(1 + n) * scale
        parts.append(
            Markup(
                '<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{:.2f} to {:.2f}: {:,} {}</title></rect>"
            ).format(
                name,
                x + number * width,
                bottom - tall,
                max(width - 1, 1),
                tall,
                item.low,
                item.high,
                n,
                name,
            )
        )
    return parts


def _heat(cell: Cell, x: float, y: float, width: float, height: float, depth: float) -> Markup:
    value = f"{100 * cell.value:.1f}" if cell.value < 0.9995 else "100"
    return Markup(
        '<g><title>{}</title><rect class="heat" x="{:.1f}" y="{:.1f}" width="{}" height="{}" '
        'fill-opacity="{:.2f}"/>{}{}</g>'
    ).format(
        f"{cell.label}: {cell.note}",
        x,
        y,
        width,
        height,
        depth * DARKEST,
        _text(x + width / 2, y + 14, f"·{cell.label.rsplit('.', 1)[-1]}", "middle"),
        _text(x + width / 2, y + 31, value, "middle"),
    )


def _spot(index: int) -> tuple[float, float]:
    """Where entry `index` of a dot plot's legend stands: four in a line."""
    return 16 + 108.0 * (index % 4), 14 + 18.0 * (index // 4)


def _marker(index: int, x: float, y: float, note: str) -> Markup:
    shape = SHAPES[index % len(SHAPES)]
    reach = {"circle": 0.0, "diamond": 6.0, "square": 4.5, "triangle": 6.0}[shape]
    inner = Markup("<title>{}</title>").format(note) if note else Markup()
    css = f"mark c{index % COLOURS}"
    if shape == "circle":
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5">{}</circle>').format(
            css, x, y, inner
        )
    corners = {
        "diamond": ((0, -1), (1, 0), (0, 1), (-1, 0)),
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": ((0, -1), (1, 0.8), (-1, 0.8)),
    }[shape]
    path = " ".join(f"{x + reach * dx:.1f},{y + reach * dy:.1f}" for dx, dy in corners)
    return Markup('<polygon class="{}" points="{}">{}</polygon>').format(css, path, inner)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        css, x1, y1, x2, y2
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def _svg(
    ident: str, title: str, desc: str, width: float, height: float, parts: Sequence[Markup]
) -> Markup:
    return Markup(
        '<svg role="img"{6} aria-labelledby="{0}-t {0}-d" viewBox="0 0 {1:.0f} {2:.0f}">'
        '<title id="{0}-t">{3}</title><desc id="{0}-d">{4}</desc>{5}</svg>'
    ).format(
        ident,
        width,
        height,
        title,
        desc,
        Markup().join(parts),
        Markup(' class="wide"') if width > NARROW else "",
    )
