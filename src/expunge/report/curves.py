"""Curves over one axis as inline SVG, told apart without colour too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from expunge.report.charts import COLOURS, _line, _marker, _place, _svg, _text, ticks

DASHES = ("none", "7 4", "2 3", "10 3 2 3")


def line_plot(
    ident: str,
    title: str,
    desc: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    axes: tuple[str, str] = ("", ""),
    *,
    hues: Sequence[int] = (),
    names: Sequence[str] = (),
    chosen: int | None = None,
    limit: float | None = None,
) -> Markup:
    """Draw curves, told apart by dashes and markers as well as by colour.

    Args:
        ident: Prefix of the element ids, unique in the page.
        title: Accessible name.
        desc: Accessible description.
        curves: {name: points in order}; at least one point in all.
        axes: Labels of the horizontal and the vertical axis.
        hues: One colour and marker per curve; curves that share one differ in their dashes.
            By default every curve has its own.
        names: What to print at x = 0, 1, 2 and so on, where x only counts.
        chosen: The x to mark with a vertical line, or None.
        limit: The y to mark with a horizontal line, or None.
    """
    points = [point for curve in curves.values() for point in curve]
    top = 44.0 + 18 * len(curves)
    plane = _Plane(
        _span([x for x, _ in points]), _span([*(y for _, y in points), 0.0]), top, top + 200
    )
    styles = _styles(hues or range(len(curves)))
    parts = [*_curve_legend(list(curves), styles, plane.left, 14), _text(8, top - 16, axes[1])]
    middle = (plane.left + plane.right) / 2
    parts.append(_text(middle, plane.bottom + 38, axes[0], "middle"))
    parts += [*_columns(plane, names), *_bounds(plane, chosen, limit), *_levels(plane)]
    for (hue, dash), curve in zip(styles, curves.values(), strict=True):
        parts += _curve(plane, curve, hue, dash, names)
    return _svg(ident, title, desc, 640, plane.bottom + 46, parts)


@dataclass(frozen=True)
class _Plane:
    """The area of a line plot: the least and the greatest x and y, and where they stand."""

    xs: tuple[float, float]
    ys: tuple[float, float]
    top: float
    bottom: float
    left: float = 60.0
    right: float = 610.0

    def across(self, x: float) -> float:
        return _place(x, *self.xs, self.left, self.right)

    def up(self, y: float) -> float:
        return _place(y, *self.ys, self.bottom, self.top)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _styles(hues: Sequence[int]) -> list[tuple[int, str]]:
    """Hue and dashes of every curve: the first of each hue takes the first dashes."""
    alone = len(set(hues)) == len(hues)
    places = [n if alone else list(hues[:n]).count(hue) for n, hue in enumerate(hues)]
    return [(hue, DASHES[n % len(DASHES)]) for hue, n in zip(hues, places, strict=True)]


def _curve_legend(
    names: Sequence[str], styles: Sequence[tuple[int, str]], x: float, y: float
) -> list[Markup]:
    parts: list[Markup] = []
    for row, (name, (hue, dash)) in enumerate(zip(names, styles, strict=True)):
        level = y + 18 * row
        parts.append(
            Markup(
                '<line class="curve c{}" stroke-dasharray="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>'
            ).format(hue % COLOURS, dash, x - 20, level, x + 20, level)
        )
        parts += [_marker(hue, x, level, ""), _text(x + 28, level + 4, name)]
    return parts


def _columns(plane: _Plane, names: Sequence[str]) -> list[Markup]:
    """Vertical grid lines with the names, or else the figures, under them."""
    parts = []
    for value in range(len(names)) if names else ticks(*plane.xs):
        x, told = plane.across(value), names[int(value)] if names else f"{value:g}"
        parts.append(_line(x, plane.top, x, plane.bottom, "grid"))
        parts.append(_text(x, plane.bottom + 18, told, "middle"))
    return parts


def _levels(plane: _Plane) -> list[Markup]:
    """Horizontal grid lines with their figures."""
    parts = []
    for value in ticks(*plane.ys):
        y = plane.up(value)
        parts.append(_line(plane.left, y, plane.right, y, "grid"))
        parts.append(_text(plane.left - 6, y + 4, f"{value:g}", "end"))
    return parts


def _bounds(plane: _Plane, chosen: int | None, limit: float | None) -> list[Markup]:
    """The vertical line of what was chosen and the horizontal one of the limit, where given."""
    parts = []
    if chosen is not None:
        x = plane.across(chosen)
        parts.append(_line(x, plane.top - 6, x, plane.bottom, "threshold"))
        parts.append(_text(x, plane.top - 10, "chosen", "middle"))
    if limit is not None:
        y = plane.up(limit)
        parts.append(_line(plane.left, y, plane.right, y, "chance"))
        parts.append(_text(plane.left + 6, y + 14, "limit"))
    return parts


def _curve(
    plane: _Plane, curve: Sequence[tuple[float, float]], hue: int, dash: str, names: Sequence[str]
) -> list[Markup]:
    """One curve, with a marker at each point that tells its figures."""
    spots = [(plane.across(x), plane.up(y)) for x, y in curve]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    line = Markup('<polyline class="curve c{}" stroke-dasharray="{}" points="{}"/>')
    parts = [line.format(hue % COLOURS, dash, path)]
    for (x, y), (raw_x, raw_y) in zip(spots, curve, strict=True):
        told = names[int(raw_x)] if names else f"{raw_x:g}"
        parts.append(_marker(hue, x, y, f"{told}: {raw_y:.3g}"))
    return parts
