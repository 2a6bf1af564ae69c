"""View of a mixture of experts: which of them the forget set is routed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.data import CONDITIONS
from expunge.errors import InputError
from expunge.report.figures import (
    CONDITION_NAMES,
    MISSING,
    Table,
    as_list,
    as_map,
    figure,
    percent,
    plain,
)
from expunge.report.folder import PlanFile

SHOWN = 20
ASKED = ("forget", "retain")
Counts = Mapping[tuple[str, str], list[float]]


def expert_table(routing: Mapping[str, Any], plan: PlanFile | None) -> Table | None:
    """The experts with the greatest share of the forget set beyond that of the retain set.

    A share is of all that the experts of the layer were given; over them it sums to one.

    Args:
        routing: What `experts.json` holds.
        plan: For what was changed in each expert.
    """
    edits = {site.key: site for site in plan.sites} if plan else {}
    found: list[tuple[float, list[str]]] = []
    for layer, sets in as_map(routing.get("layers"), "experts.json layers").items():
        counts = _counts(layer, as_map(sets, f"experts.json {layer}"))
        forget, retain = (_shares(counts, [(name, c) for c in CONDITIONS]) for name in ASKED)
        cells = {each: _shares(counts, [each]) for each in counts}
        for expert in range(max(map(len, counts.values()), default=0)):
            key = f"{layer}.expert.{expert}"
            site = edits.get(key)
            detail = "" if site is None else f"rank {site.rank}" if site.rank else plain(site.count)
            excess = forget[expert] - retain[expert] if forget and retain else 0.0
            row = [key, *(_cell(cells.get((n, c)), expert) for n in ASKED for c in CONDITIONS)]
            found.append((excess, [*row, f"{100 * excess:+.1f}", detail or MISSING]))
    if not found:
        return None
    found.sort(key=lambda pair: -pair[0])
    heads = [f"{name}, {CONDITION_NAMES[c]}" for name in ASKED for c in CONDITIONS]
    shown = f"{min(SHOWN, len(found))} of {len(found)} experts"
    caption = f"Experts that carry the forget set: share of what their layer was given ({shown})"
    columns = ["expert", *heads, "forget beyond retain, points", "neurons or rank changed"]
    return Table(caption, columns, [row for _, row in found[:SHOWN]])


def _counts(layer: str, sets: Mapping[str, Any]) -> Counts:
    """(set, condition) -> units given to each expert of the layer."""
    found = {}
    for name in ASKED:
        for condition, values in as_map(sets.get(name), f"experts.json {layer} {name}").items():
            where = f"experts.json {layer} {name} {condition}"
            found[name, condition] = [figure(v, where) or 0.0 for v in as_list(values, where)]
    if len({len(counts) for counts in found.values()}) > 1:
        raise InputError(
            f"experts.json {layer} counts different numbers of experts; make the plan again"
        )
    return found


def _shares(counts: Counts, parts: list[tuple[str, str]]) -> list[float]:
    """Share of each expert over several sets and conditions together; empty without any."""
    known = [counts[part] for part in parts if part in counts]
    sums = [sum(each) for each in zip(*known, strict=True)]
    total = sum(sums)
    return [each / total for each in sums] if total else []


def _cell(shares: list[float] | None, expert: int) -> str:
    return percent(shares[expert]) if shares else MISSING
