"""Check the numbers that come out of files, and print them the same way everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.errors import InputError

MISSING = "–"
CONDITION_NAMES = {"multi": "image + text", "text": "text only"}


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    Attributes:
        caption: What the table shows.
        columns: One heading per column.
        rows: Cells as text, each row as long as `columns`.
        heads: How many leading columns name the row.
        chosen: Positions of rows to set apart (their text says so as well).
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heads: int = 1
    chosen: frozenset[int] = frozenset()


def as_map(value: Any, where: str) -> Mapping[str, Any]:
    """Return `value` as a mapping (null counts as empty).

    Raises:
        InputError: `value` is neither a mapping nor null; `where` names the place.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(
            f"{where} is a {type(value).__name__}, expected an object; write the file again"
        )
    return value


def as_list(value: Any, where: str) -> Sequence[Any]:
    """Return `value` as a list (null counts as empty).

    Raises:
        InputError: `value` is neither a list nor null; `where` names the place.
    """
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise InputError(
            f"{where} is a {type(value).__name__}, expected a list; write the file again"
        )
    return value


def figure(value: Any, where: str, *, share: bool = False) -> float | None:
    """Return a finite number, or None for null, NaN and infinity.

    Args:
        value: What the file holds.
        where: The place, for the error.
        share: Whether only values from 0 to 1 make sense.

    Raises:
        InputError: `value` is no number, or a share outside 0 to 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {value!r}, expected a number or null; write the file again")
    if not math.isfinite(value):
        return None
    if share and not 0 <= value <= 1:
        raise InputError(f"{where} is {value}, expected a share from 0 to 1; write the file again")
    return float(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Print a share as per cent (with a space that does not break), or a dash for None."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u00a0%"


def between(shown: str, ends: Sequence[str]) -> str:
    """A printed figure with the printed ends of its interval behind it, if there are two."""
    return f"{shown} [{', '.join(ends)}]" if len(ends) == 2 else shown


def whole(value: float) -> str:
    """Print a share in whole per cent; near 0 and 100 with a digit, so that nothing is hidden."""
    return percent(value, 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0)


def short(value: Any) -> str:
    """Print a measured figure with as many digits as a reader can use, anything else plainly."""
    if not isinstance(value, float) or not math.isfinite(value):
        return plain(value)
    if value.is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 0.0005:
        return "<\u00a00.001" if value > 0 else ">\u00a0−0.001"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def plain(value: Any) -> str:
    """Print any JSON value on one line: numbers in full, `yes` or `no`, or the text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or MISSING
    return str(value)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one level, names joined by a space, in the order met."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= flatten(item, f"{prefix} {name}".strip())
    return flat


def ordered(known: Iterable[str], found: Iterable[str]) -> list[str]:
    """Return the names in `found`: those in `known` first and in that order, then the others."""
    known, found = list(known), set(found)
    return [name for name in known if name in found] + sorted(found - set(known))


def natural(key: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `language.9` comes before `language.10`."""
    parts = re.split(r"(\d+)", key)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
