"""MANU, Modality-Aware Neuron Unlearning (arXiv 2502.15910), as printed."""

from __future__ import annotations

from torch import Tensor

from expunge.config import RunConfig
from expunge.importance import manu_importance, ratio
from expunge.methods.base import Evidence, Method, Outcome, pruned, stats_of
from expunge.selection import select
from expunge.stats import NeuronStats


def importance(evidence: Evidence, config: RunConfig, data: str, key: str, width: int) -> Tensor:
    """I(D, n) of every neuron of one site on one data set, float64 [width]."""
    multi = stats_of(evidence, data, "multi", key) or NeuronStats.zeros(width, config.tau)
    text = stats_of(evidence, data, "text", key)
    return manu_importance(multi, text, config.importances, config.eps)


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Prune the neurons with the highest I(forget) / (I(retain) + eps)."""
    scores = {
        s.key: ratio(
            importance(evidence, config, "forget", s.key, s.width),
            importance(evidence, config, "retain", s.key, s.width),
            config.eps,
        ).cpu()
        for s in evidence.sites
    }
    chosen = select(scores, config.budget or 0.0, per_tower=config.per_tower)
    return Outcome(pruned(chosen), scores)


METHOD = Method(
    name="manu",
    about="MANU as printed: four importances, forget / retain ratio, top share pruned",
    decide=decide,
    neurons=True,
    budget=0.02,
)
