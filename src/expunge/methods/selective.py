"""Selective pruning (arXiv 2403.01267): feed-forward and attention neurons, in rounds.

A neuron's importance on a set is one of mean |z| (abs), share of z > 0 (freq), rms z or std z
over both conditions; its score is I(forget) / (I(retain) + eps). Each kind of neuron has its own
fraction; after each round the statistics are taken again from the pruned model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.importance import ratio
from expunge.methods.base import Evidence, Measured, Method, Outcome, merged, pruned
from expunge.plan import SiteEdit
from expunge.selection import select
from expunge.stats import NeuronStats

ROUNDS = 4
ATTENTION = 0.25
"""Fraction of the attention neurons pruned, relative to that of the feed-forward neurons."""

Reading = Callable[[NeuronStats], Tensor]
READINGS: dict[str, tuple[str, Reading]] = {
    "abs": ("neurons", lambda s: s.mean_abs),
    "freq": ("positive", lambda s: s.share_over),
    "rms": ("neurons", lambda s: s.mean_square.sqrt()),
    "std": ("neurons", lambda s: s.std),
}


def scores_of(
    evidence: Evidence, measured: Measured, config: RunConfig, reading: Reading
) -> dict[str, Tensor]:
    """Score of every neuron from one round's statistics, float64 [width] by site key."""
    scores = {}
    for site in evidence.sites:
        forget, retain = (merged(measured, data, site.key) for data in ("forget", "retain"))
        nothing = torch.zeros(site.width, dtype=torch.float64)
        scores[site.key] = ratio(
            nothing if forget is None else reading(forget).cpu(),
            nothing if retain is None else reading(retain).cpu(),
            config.eps,
        )
    return scores


def decide(evidence: Evidence, config: RunConfig, name: str) -> Outcome:
    """Prune `budget` of the feed-forward and a quarter of that share of the attention neurons.

    What is pruned in one round stays pruned, and keeps the score that it was pruned by.
    """
    assert evidence.access is not None
    what, reading = READINGS[name]
    budget = config.budget or 0.0
    fractions = {"feed-forward": budget, "attention": ATTENTION * budget}
    edits: dict[str, SiteEdit] = {}
    scores: dict[str, Tensor] = {}
    for round_ in range(1, ROUNDS + 1):
        known = what == "neurons" and not edits and bool(evidence.neurons)
        measured = evidence.neurons if known else evidence.access.measure(what, edits)
        fresh = scores_of(evidence, measured, config, reading)
        ranked = {key: score.clone() for key, score in fresh.items()}
        for key, edit in edits.items():
            gone = edit.neurons()
            fresh[key][gone], ranked[key][gone] = scores[key][gone], math.inf
        scores, edits = fresh, {}
        for kind, fraction in fractions.items():
            mine = {
                s.key: ranked[s.key]
                for s in evidence.sites
                if (s.kind == "attention") == (kind == "attention")
            }
            share = fraction * round_ / ROUNDS
            edits |= pruned(select(mine, share, per_tower=config.per_tower))
    return Outcome(edits, scores, {"rounds": ROUNDS, "fractions": fractions})


METHODS = tuple(
    Method(
        name="selective" if name == "abs" else f"selective-{name}",
        about=f"selective pruning of MLP and attention neurons by {words}, in {ROUNDS} rounds",
        decide=partial(decide, name=name),
        neurons=READINGS[name][0] == "neurons",
        attention=True,
        budget=0.02,
    )
    for name, words in (
        ("abs", "mean |z|"),
        ("freq", "share of z > 0"),
        ("rms", "rms z"),
        ("std", "std z"),
    )
)
