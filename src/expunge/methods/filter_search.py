"""The forget/retain filter, its strengths found on held-out retain subjects.

The forget set is looked at in views: questions in text alone, and under image+text either the
positions at which the answer is predicted or those of the picture, whichever shows it more apart
from what is kept. Directions that carry more of a view than of what is kept are removed and a
little reversed (`OVERSHOOT`), the more the higher their ratio; each condition has a strength of its
own, so that both are forgotten alike.

Everything comes from forward passes. The retain subjects are divided into folds. Candidates of
growing strength are carried out and judged: how likely the forget answers still are, and, with each
fold in turn left out of the statistics, what the subjects of that fold lose: they stand for the
neighbours that no user can list. Questions of random tokens with scrambled pictures count among
what is kept, as a stand-in for everything that no retain set shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.methods.base import (
    ASIDE,
    BESIDE,
    PICTURE,
    Evidence,
    Method,
    Outcome,
    Verdict,
)
from expunge.methods.filters import ENERGY, edits_for, moment
from expunge.methods.search import Pace, Step, Strengths, progress, search, told
from expunge.plan import SiteEdit
from expunge.subspace import Views, shares, views

RIDGE = 0.03
POWER = 2.0
OVERSHOOT = 1.0
LEAST = 1e-3
PACE = Pace(first=1.0, rises=6, halvings=3, done=progress)
NUMBER = 128
CHOICES = {"multi": ("multi", PICTURE), "text": ("text",)}
VIEWS = (*CONDITIONS, PICTURE)


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Build the directions, and search their strengths unless one is given."""
    folds = evidence.kept
    asked = [ASIDE] if ASIDE in folds else folds  # what the judge knows of
    kept = [folds]
    if config.strength is None:
        kept += [[f for f in folds if f != left] for left in asked]
    final, *without = views_of(evidence, kept)
    scales = scales_of(final)
    scores = {key: each.space.ratio for key, each in final.items()}
    notes: dict[str, Any] = {"views": {c: view for c, (view, _) in scales.items()}}
    chosen: Strengths = {(c, ""): config.strength or 0.0 for c in scales}
    if config.strength is None:
        assert evidence.judge is not None
        judge = evidence.judge
        start = judge({}, [{}] * len(asked))
        steps: list[Step] = []

        def tried(now: Strengths) -> Verdict:
            made = [edits_at(evidence, f, scales, now, None) for f in (final, *without)]
            return judge(made[0], made[1:])

        chosen = search(tried, start, config.keep, steps, PACE)
        notes["search"] = told(start, steps, chosen, config.keep)
    return Outcome(edits_at(evidence, final, scales, chosen), scores, notes)


def edits_at(
    evidence: Evidence,
    found: Mapping[str, Views],
    scales: Mapping[str, tuple[str, float]],
    strengths: Strengths,
    energy: float | None = ENERGY,
    power: float = POWER,
) -> dict[str, SiteEdit]:
    """The edits at given strengths; see `scales_of`, `filters.edits_for` and `subspace.shares`."""
    weights = {view: strengths.get((c, ""), 0.0) / scale for c, (view, scale) in scales.items()}
    at = {key: each.weighted(weights) for key, each in found.items()}
    shared = {key: shares(d.ratio, 1.0, power) for key, d in at.items()}
    removed = {k: torch.where(s < LEAST, 0.0, (1 + OVERSHOOT) * s) for k, s in shared.items()}
    return edits_for(evidence, at, removed, energy)


def views_of(
    evidence: Evidence,
    kept: Sequence[Sequence[str]],
    beside: Mapping[str, float] = BESIDE,
    keys: Sequence[str] | None = None,
) -> list[dict[str, Views]]:
    """For each choice of sets that stand for what is kept: site key -> views, of all or some sites.

    Site by site, so that second moments may be collected by groups of sites.
    """
    found: list[dict[str, Views]] = [{} for _ in kept]
    for key in [s.key for s in evidence.sites] if keys is None else keys:
        for into, each in zip(found, _views_at(evidence, key, kept, beside), strict=False):
            into[key] = each
    return found


def _views_at(
    evidence: Evidence, key: str, kept: Sequence[Sequence[str]], beside: Mapping[str, float]
) -> Iterator[Views]:
    """The views of one site for each choice, none if it never fired on forget."""
    forget = {v: moment(evidence, ("forget",), key, (v,)) for v in VIEWS}
    known = {view: m for view, m in forget.items() if m is not None}
    if not known:
        return
    for sets in kept:
        base = moment(evidence, sets, key, VIEWS)
        base = torch.zeros_like(next(iter(known.values()))) if base is None else base
        for name, share in beside.items():
            other = moment(evidence, (name,), key)
            if other is not None:
                base.add_(other, alpha=share)
        yield views(known, base, ridge=RIDGE, number=NUMBER)


def scales_of(
    found: Mapping[str, Views], choices: Mapping[str, Sequence[str]] = CHOICES
) -> dict[str, tuple[str, float]]:
    """Condition -> the view that stands for it, and the top ratio of its typical (median) site.

    Of several views that could stand for a condition it is the one with the greatest such ratio.
    """
    tops = {
        view: statistics.median(each.top(view) for each in found.values() if view in each.parts)
        for view in VIEWS
        if any(view in each.parts for each in found.values())
    }
    scales = {}
    for condition, views_for in choices.items():
        known = [(tops[view], view) for view in views_for if tops.get(view, 0.0) > 0]
        if known:
            top, view = max(known)
            scales[condition] = view, top
    return scales


METHOD = Method(
    name="filter-search",
    about="forget/retain filter, strengths found by search on held-out retain subjects",
    decide=decide,
    moments=True,
    directions=NUMBER,
    folds=5,
    picture=True,
    noise=True,
    positions="answer",
    towers=("language",),
)
