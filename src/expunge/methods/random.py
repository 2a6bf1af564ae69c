"""Random neurons: the control every pruning method must beat."""

from __future__ import annotations

import torch

from expunge.config import RunConfig
from expunge.methods.base import Evidence, Method, Outcome, pruned
from expunge.selection import select


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Prune a uniformly random share of the neurons, a function of the seed alone."""
    generator = torch.Generator().manual_seed(config.seed)
    scores = {
        s.key: torch.rand(s.width, generator=generator, dtype=torch.float64) for s in evidence.sites
    }
    return Outcome(pruned(select(scores, config.budget or 0.0)), scores)


METHOD = Method(
    name="random", about="a random share of the neurons, as a control", decide=decide, budget=0.02
)
