"""Views of `search.json`: how a method found its strength or its training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from expunge.data import CONDITIONS
from expunge.report.curves import line_plot
from expunge.report.figures import CONDITION_NAMES, Table, as_list, as_map, figure, plain, short

TITLES = {
    "strengths": "strength by condition",
    "forget": "forget recalled",
    "forget_nll": "answer loss",
    "other_nll": "strangers' loss",
    "likelier": "beats strangers",
    "held_out_retain": "held-out retain",
    "kept": "kept",
}
MEANING = (
    "Forget recalled: accuracy on a sample of the forget set. Answer loss: loss on its reference"
    " answers, nats per token; strangers' loss: the same on answers that belong to other subjects;"
    " beats strangers: how often the reference answer is the likelier of the two (0.5 by chance)."
    " Held-out retain: accuracy on retain subjects left out of the statistics; kept: the least"
    " share of it that is left. Two figures: image + text / text only."
)


@dataclass(frozen=True)
class SearchView:
    """What the page says about a search.

    Attributes:
        told: Sentences: the rule, the limit, what the columns mean.
        table: Every candidate.
        picture: What each candidate forgets and keeps, where the candidates are strengths.
    """

    told: Sequence[str]
    table: Table
    picture: Markup | None


def search_view(search: Mapping[str, Any]) -> SearchView:
    """Show the candidates of a strength search (`steps`) or a training search (`candidates`)."""
    steps = _steps(search)
    known = "forget_nll" in (steps[0] if steps else {})
    limit = figure(search.get("limit", search.get("keep")), "search.json limit")
    rule = search.get("explanation") or search.get("rule")
    told = [str(rule)] if rule else []
    told += [f"Limit: {plain(limit)}."] if limit is not None else []
    return SearchView(told + ([MEANING] if known else []), _table(steps), _picture(steps, limit))


def chosen_strength(search: Mapping[str, Any] | None) -> float | None:
    """The strength that a search took, or None."""
    taken = [step for step in _steps(search or {}) if step["chosen"]]
    return figure(taken[0].get("strength"), "search.json strength") if taken else None


def _steps(search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates, each with `chosen`; strengths in rising order."""
    key = "steps" if "steps" in search else "candidates"
    steps = [
        dict(as_map(step, "search.json step"))
        for step in as_list(search.get(key), f"search.json {key}")
    ]
    if key == "candidates":
        best = as_map(search.get("chosen"), "search.json chosen")
        for step in steps:
            step["chosen"] = bool(best) and best.items() <= step.items()
        return steps
    for step in steps:
        step["chosen"] = step.get("chosen") is True
    return sorted(steps, key=_strength)


def _strength(step: Mapping[str, Any]) -> float:
    return figure(step.get("strength"), "search.json strength") or 0.0


def _table(steps: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(name for step in steps for name in step if name != "chosen"))
    rows = [
        [*(_cell(step.get(name)) for name in columns), "✔ chosen" if step["chosen"] else ""]
        for step in steps
    ]
    chosen = frozenset(number for number, step in enumerate(steps) if step["chosen"])
    titles = [TITLES.get(name, name.replace("_", " ")) for name in columns]
    return Table("Candidates tried", [*titles, "choice"], rows, chosen=chosen)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\u00a0/\u00a0".join(short(item) for item in value.values())
    return short(value)


def _picture(steps: Sequence[Mapping[str, Any]], limit: float | None) -> Markup | None:
    if len(steps) < 2 or any("strength" not in step for step in steps):
        return None
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, step in enumerate(steps):
        recalled = as_map(step.get("forget"), "search.json forget")
        shown = {
            f"forget recalled, {CONDITION_NAMES[name]}": recalled.get(name) for name in CONDITIONS
        } | {"held-out retain kept, the lesser": step.get("kept")}
        for name, value in shown.items():
            share = figure(value, f"search.json {name}")
            if share is not None and math.isfinite(share):
                curves.setdefault(name, []).append((number, share))
    if not curves:
        return None
    names = [f"{_strength(step):.3g}" for step in steps]
    taken = next((number for number, step in enumerate(steps) if step["chosen"]), None)
    desc = "; ".join(
        f"{name} from {curve[0][1]:.3f} to {curve[-1][1]:.3f}" for name, curve in curves.items()
    )
    return line_plot(
        "search-plot",
        "Forgotten and kept by strength",
        desc,
        curves,
        ("strength tried, in order (evenly spaced)", "share"),
        names=names,
        chosen=taken,
        limit=limit,
    )
