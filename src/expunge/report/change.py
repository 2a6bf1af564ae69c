"""Views of the plan: what was changed where, and the scores behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from expunge.report.charts import Bin, Cell, heat_map, histogram
from expunge.report.figures import MISSING, Table, ordered, percent, plain, short
from expunge.report.folder import TOWERS, PlanFile, SiteEdit

BINS = 36


def site_table(plan: PlanFile) -> Table:
    """One row per edited site: kind, neurons, share of the width, and its detail."""
    rows = [
        [
            site.key,
            site.tower,
            site.kind,
            plain(site.width),
            plain(site.count) if site.indices is not None else MISSING,
            percent(site.share) if site.indices is not None else MISSING,
            _detail(site),
        ]
        for site in plan.sites
    ]
    columns = ["site", "tower", "edit", "width", "neurons", "share", "detail"]
    return Table("Edited sites (energy: squared norm of the change)", columns, rows)


def tower_table(plan: PlanFile) -> Table:
    """Sums by tower over the edited sites."""
    rows = []
    for tower in plan.towers:
        sites = [site for site in plan.sites if site.tower == tower]
        count, width = sum(site.count for site in sites), sum(site.width for site in sites)
        ranks = sum(site.rank or 0 for site in sites)
        share = percent(count / width) if width and count else MISSING
        rows.append([tower, plain(len(sites)), plain(count), share, plain(ranks or None)])
    columns = ["tower", "edited sites", "neurons", "share of their neurons", "sum of ranks"]
    return Table("Edits by tower", columns, rows)


def heat_maps(plan: PlanFile) -> list[tuple[str, Markup]]:
    """Heat maps by tower: share of neurons changed, and share of the energy of low-rank edits."""
    maps = []
    single = [site for site in plan.sites if site.indices is not None]
    if single:
        rows = _by_tower(single, {site.key: site.share for site in single})
        title = "Share of neurons changed at each edited site (its number), per cent"
        desc = f"{_span(single)} The darkest cell is {percent(max(s.share for s in single))}."
        maps.append((title, heat_map("heat-neurons", title, desc, rows)))
    total = sum(site.energy or 0.0 for site in plan.sites)
    if total > 0:
        factored = [site for site in plan.sites if site.energy is not None]
        shares = {site.key: (site.energy or 0.0) / total for site in factored}
        title = "Share of the low-rank change's energy at each edited site (its number), per cent"
        desc = f"{_span(factored)} The darkest cell is {percent(max(shares.values()))}."
        maps.append((title, heat_map("heat-energy", title, desc, _by_tower(factored, shares))))
    return maps


def score_plots(
    scores: Mapping[str, NDArray[np.float64]], plan: PlanFile | None
) -> list[tuple[str, Markup, str]]:
    """One histogram of log10 scores per tower: (title, picture, note)."""
    sites = {site.key: site for site in plan.sites} if plan else {}
    towers: dict[str, list[str]] = {}
    for key in scores:
        tower = sites[key].tower if key in sites else key.split(".")[0]
        towers.setdefault(tower, []).append(key)
    plots = []
    for number, tower in enumerate(ordered(TOWERS, towers)):
        values = np.concatenate([scores[key] for key in towers[tower]])
        chosen = np.concatenate([_chosen(sites.get(key), scores[key]) for key in towers[tower]])
        shown = np.isfinite(values) & (values > 0)
        low_rank = any(sites[key].kind == "lowrank" for key in towers[tower] if key in sites)
        unit = "directions" if low_rank else "neurons"
        note = f"{len(values):,} scores, {int(chosen.sum()):,} of them of changed neurons"
        if low_rank:
            note = f"{len(values):,} directions, each scored by forget against retain energy"
        if not shown.all():
            note += f"; {int((~shown).sum()):,} scores of zero, below or not finite are not drawn"
        picture = Markup()
        title = f"Scores in the {tower} tower"
        if shown.any():
            logs, marks = np.log10(values[shown]), chosen[shown]
            limit = threshold(logs, marks)
            if limit is not None:
                note += f"; threshold (least score changed) {10**limit:.4g}"
            axes = ("log10 of score", f"{unit}, logarithmic height")
            picture = histogram(
                f"scores-{number}", title, note, bins(logs, marks, limit), limit, axes
            )
            if chosen.any():
                note += ". Solid bars: kept; outlined bars: changed"
        plots.append((title, picture, note))
    return plots


def threshold(logs: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float | None:
    """Least log10 score among the changed neurons, or None where none or all are changed."""
    return float(logs[chosen].min()) if chosen.any() and not chosen.all() else None


def bins(logs: NDArray[np.float64], chosen: NDArray[np.bool_], limit: float | None) -> list[Bin]:
    """Count kept and changed neurons in equal bins, one edge of which lies on the threshold."""
    low, high = float(logs.min()), float(logs.max())
    step = (high - low) / BINS or 1.0
    origin = low if limit is None else limit
    start = origin - math.ceil((origin - low) / step - 1e-9) * step
    place = np.maximum(
        np.floor((logs - origin) / step).astype(int) + round((origin - start) / step), 0
    )
    kept = np.bincount(place[~chosen], minlength=place.max() + 1)
    changed = np.bincount(place[chosen], minlength=place.max() + 1)
    return [
        Bin(start + number * step, start + (number + 1) * step, int(a), int(b))
        for number, (a, b) in enumerate(zip(kept, changed, strict=True))
    ]


def _chosen(site: SiteEdit | None, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    marks = np.zeros(len(scores), dtype=bool)
    if site is not None and site.indices is not None:
        inside = site.indices[site.indices < len(scores)]
        marks[inside] = True
    return marks


def _by_tower(sites: Sequence[SiteEdit], values: Mapping[str, float]) -> dict[str, list[Cell]]:
    rows: dict[str, list[Cell]] = {}
    for site in sites:
        rows.setdefault(site.tower, []).append(Cell(site.key, values[site.key], _note(site)))
    return rows


def _note(site: SiteEdit) -> str:
    if site.indices is None:
        return _detail(site)
    return f"{site.count:,} of {site.width:,} neurons"


def _span(sites: Sequence[SiteEdit]) -> str:
    return f"{len(sites)} sites from {sites[0].key} to {sites[-1].key}, left to right."


def _detail(site: SiteEdit) -> str:
    if site.rank is not None:
        size = "" if site.energy is None else f", energy |AB|² {short(site.energy)}"
        return f"rank {site.rank}{size}"
    if site.mean_factor is not None:
        return f"mean factor {site.mean_factor:.3g}"
    told = {"prune": "outgoing weights set to 0", "rewire": "replaced by detectors"}
    return told.get(site.kind, MISSING)
