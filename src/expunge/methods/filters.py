"""The forget/retain filter, soft, hard and neuron by neuron (METHODS: ours)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.methods.base import Evidence, Method, Outcome, stats_of
from expunge.plan import SiteEdit
from expunge.subspace import MAX_RANK, Directions, compressed, directions, lowrank_edit, shares

TOWERS = ("connector", "language")
RIDGE = 0.3
ENERGY = 0.999


def moment(
    evidence: Evidence, sets: Sequence[str], key: str, conditions: Sequence[str] = CONDITIONS
) -> Tensor | None:
    """Second moment of a site on some sets, [width, width] float64.

    Sets count by their tokens, conditions alike; None where nothing was counted.
    """
    found = []
    for condition in conditions:
        parts = [evidence.moments.get((name, condition), {}).get(key) for name in sets]
        known = [m for m in parts if m is not None and m.count]
        if known:
            found.append(known)
    if not found:
        return None
    mean = torch.zeros_like(found[0][0].outer, dtype=torch.float64)
    for known in found:
        share = 1 / (len(found) * sum(m.count for m in known))
        for each in known:
            mean.add_(each.outer, alpha=share)
    return mean


def site_directions(evidence: Evidence) -> dict[str, Directions]:
    """Eigen-directions of every site that fired on forget, by site key.

    Site by site, so that second moments may be collected by groups of sites.
    """
    found = {}
    for site in evidence.sites:
        forget = moment(evidence, ("forget",), site.key)
        if forget is not None:
            retain = moment(evidence, ("retain",), site.key)
            base = torch.zeros_like(forget) if retain is None else retain
            found[site.key] = directions(forget, base, ridge=RIDGE)
    return found


def edits_for(
    evidence: Evidence,
    found: Mapping[str, Directions],
    removed: Mapping[str, Tensor],
    energy: float | None = ENERGY,
) -> dict[str, SiteEdit]:
    """Low-rank edits that remove the given share of each direction, rank chosen by energy.

    Without `energy` nothing is left out, which is quicker.
    """
    assert evidence.weight is not None
    edits = {}
    for key, share in removed.items():
        number = int((share > 0).sum())
        if not number:
            continue
        a, b = lowrank_edit(evidence.weight(key), found[key].top(number), share[:number])
        if energy is not None:
            a, b, _ = compressed(a, b, energy)
        edits[key] = SiteEdit(lowrank=(a.contiguous(), b.contiguous()))
    return edits


def soft(evidence: Evidence, config: RunConfig) -> Outcome:
    """W' = W C_r (C_r + mu C_f)^-1, mu = strength."""
    found = site_directions(evidence)
    removed = {k: shares(d.ratio, config.strength or 0.0) for k, d in found.items()}
    return Outcome(edits_for(evidence, found, removed), {k: d.ratio for k, d in found.items()})


def hard(evidence: Evidence, config: RunConfig) -> Outcome:
    """Prune the top share of all generalised eigen-directions, ranked over all sites."""
    found = site_directions(evidence)
    total = sum(s.width for s in evidence.sites if s.key in found)
    number = math.floor((config.budget or 0.0) * total + 1e-9)
    everything = torch.cat([d.ratio for d in found.values()]) if found else torch.zeros(0)
    order = everything.sort(descending=True, stable=True).values
    least = float(order[min(number, order.numel()) - 1]) if number and order.numel() else math.inf
    removed = {k: (d.ratio >= least).double() for k, d in found.items()}
    return Outcome(edits_for(evidence, found, removed), {k: d.ratio for k, d in found.items()})


def diagonal(evidence: Evidence, config: RunConfig) -> Outcome:
    """Shrink neuron n by 1 / (1 + mu E_f / E_r), E the mean energy: soft pruning."""
    edits, scores = {}, {}
    for site in evidence.sites:
        energy = {}
        for data in ("forget", "retain"):
            stats = [stats_of(evidence, data, c, site.key) for c in ("multi", "text")]
            known = [s.mean_square for s in stats if s is not None]
            if known:
                energy[data] = sum(known[1:], known[0]) / len(known)
        if "forget" not in energy:
            continue
        base = energy.get("retain", torch.zeros_like(energy["forget"]))
        scores[site.key] = energy["forget"] / (base + config.eps)
        factors = 1 / (1 + (config.strength or 0.0) * scores[site.key])
        index = torch.arange(site.width)
        edits[site.key] = SiteEdit(scale=(index, factors.float().cpu()))
    return Outcome(edits, scores)


FILTER = Method(
    name="filter",
    about="forget/retain filter: W C_r (C_r + mu C_f)^-1, mu = --strength",
    decide=soft,
    moments=True,
    directions=MAX_RANK,
    towers=TOWERS,
    strength=0.3,
)
DIRECTIONS = Method(
    name="directions",
    about="prune the top share of forget/retain eigen-directions",
    decide=hard,
    moments=True,
    directions=MAX_RANK,
    towers=TOWERS,
    budget=0.01,
)
DIAGONAL = Method(
    name="filter-diagonal",
    about="soft pruning: each neuron shrunk by its forget/retain energy, mu = --strength",
    decide=diagonal,
    neurons=True,
    towers=TOWERS,
    strength=1.0,
)
