"""Saliency: neurons whose attribution z * dL/dz is greater on forget than on retain answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.importance import ratio
from expunge.methods.base import Evidence, Method, Outcome, merged, pruned
from expunge.selection import select
from expunge.stats import NeuronStats

Reading = Callable[[NeuronStats], Tensor]


def decide(evidence: Evidence, config: RunConfig, reading: Reading) -> Outcome:
    """Prune the neurons with the highest I(forget) / (I(retain) + eps).

    I is read off the statistics of g = z * dL/dz over both conditions, L the mean loss of an
    example's answer tokens, and is measured in units of its mean over all neurons on the retain
    set, so that eps means the same whatever the scale of the gradients.
    """
    assert evidence.access is not None
    measured = evidence.access.measure("attributions")
    importance: dict[str, dict[str, Tensor]] = {"forget": {}, "retain": {}}
    for data, by_site in importance.items():
        for site in evidence.sites:
            stats = merged(measured, data, site.key)
            by_site[site.key] = (
                torch.zeros(site.width, dtype=torch.float64)
                if stats is None
                else reading(stats).cpu()
            )
    unit = torch.cat(list(importance["retain"].values())).mean()
    unit = unit if unit > 0 else torch.ones_like(unit)
    scores = {
        s.key: ratio(
            importance["forget"][s.key] / unit, importance["retain"][s.key] / unit, config.eps
        )
        for s in evidence.sites
    }
    chosen = select(scores, config.budget or 0.0, per_tower=config.per_tower)
    return Outcome(pruned(chosen), scores)


SALIENCY = Method(
    name="saliency",
    about="attribution |z dL/dz| of the answers, forget / retain ratio, top share pruned",
    decide=partial(decide, reading=lambda stats: stats.mean_abs),
    budget=0.02,
)
FISHER = Method(
    name="fisher",
    about="squared attribution (z dL/dz)^2 of the answers, forget / retain ratio, top share pruned",
    decide=partial(decide, reading=lambda stats: stats.mean_square),
    budget=0.02,
)
