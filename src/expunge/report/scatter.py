"""Forgetting against keeping: one numbered mark per run, the best ones joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from expunge.report.charts import Point, _line, _marker, _place, _svg, _text, ticks

CSS = Path(__file__).parent / "report.css"
NOTE = "Bars: means of the sets' 95 % bounds. Line and (front): no other run is better in both."
LEFT, RIGHT, TOP, BOTTOM = 70.0, 430.0, 20.0, 330.0


@dataclass(frozen=True)
class Spot:
    """One run: what it is called, where it lies, and whether no other run is better in both."""

    label: str
    x: Point
    y: Point
    front: bool = False


def scatter(
    ident: str, title: str, desc: str, axes: tuple[str, str], spots: Sequence[Spot]
) -> Markup:
    """Draw shares against shares with the intervals of both; least x and most y is best.

    Args:
        ident: Prefix of the element ids, unique in the page.
        title: Accessible name.
        desc: Accessible description.
        axes: Labels of the horizontal and the vertical axis.
        spots: At least one; numbered in this order.
    """
    low_x, high_x = _range([s.x for s in spots])
    low_y, high_y = _range([s.y for s in spots])
    parts = _frame((low_x, high_x), (low_y, high_y), axes)

    def place(spot: Spot) -> tuple[float, float]:
        x = _place(spot.x.value, low_x, high_x, LEFT, RIGHT)
        return x, _place(spot.y.value, low_y, high_y, BOTTOM, TOP)

    front = sorted((place(s) for s in spots if s.front), key=lambda p: p[0])
    if len(front) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(Markup('<polyline class="curve c5" points="{}"/>').format(path))
    places = [place(s) for s in spots]
    for number, (spot, (x, y)) in enumerate(zip(spots, places, strict=True)):
        under = sum(abs(x - a) < 14 and abs(y - b) < 14 for a, b in places[:number])
        css = f"whisker c{number % 6}"
        if spot.x.low is not None and spot.x.high is not None:
            ends = [_place(v, low_x, high_x, LEFT, RIGHT) for v in (spot.x.low, spot.x.high)]
            parts.append(_line(ends[0], y, ends[1], y, css))
        if spot.y.low is not None and spot.y.high is not None:
            ends = [_place(v, low_y, high_y, BOTTOM, TOP) for v in (spot.y.low, spot.y.high)]
            parts.append(_line(x, ends[0], x, ends[1], css))
        note = f"{spot.label}: {spot.x.value:.3f}, {spot.y.value:.3f}"
        parts += [_marker(number, x, y, note), _text(x + 8 + 12 * under, y - 7, str(number + 1))]
        level = TOP + 10 + 18 * number
        parts += [_marker(number, RIGHT + 24, level - 4, "")]
        star = " (front)" if spot.front else ""
        parts += [_text(RIGHT + 36, level, f"{number + 1} {spot.label}{star}")]
    parts.append(_text(8, BOTTOM + 62, NOTE))
    bottom = max(BOTTOM + 72, TOP + 20 + 18 * len(spots))
    return _svg(ident, title, desc, 640, bottom, parts)


def standalone(picture: Markup) -> str:
    """The picture as an SVG file of its own, with the colours of the report."""
    style = CSS.read_text("utf-8") + "svg { background: var(--paper); }\n"
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    text = str(picture).replace("<svg ", head, 1)
    end = text.index(">") + 1
    return f"{text[:end]}<style><![CDATA[{style}]]></style>{text[end:]}\n"


def _range(points: Sequence[Point]) -> tuple[float, float]:
    ends = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    low, high = min(ends), max(ends)
    room = max(0.02, 0.06 * (high - low))
    return low - room, high + room


def _frame(
    x_ends: tuple[float, float], y_ends: tuple[float, float], axes: tuple[str, str]
) -> list[Markup]:
    parts: list[Markup] = []
    for value in ticks(*x_ends):
        x = _place(value, *x_ends, LEFT, RIGHT)
        parts += [_line(x, TOP, x, BOTTOM, "grid")]
        parts += [_text(x, BOTTOM + 18, f"{value:g}", "middle")]
    for value in ticks(*y_ends):
        y = _place(value, *y_ends, BOTTOM, TOP)
        parts += [_line(LEFT, y, RIGHT, y, "grid"), _text(LEFT - 6, y + 4, f"{value:g}", "end")]
    parts += [_text((LEFT + RIGHT) / 2, BOTTOM + 38, axes[0], "middle")]
    parts += [_text(8, TOP - 6, axes[1])]
    return parts
