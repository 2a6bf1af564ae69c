"""Trait neurons, NPTI (arXiv 2410.12327): steering instead of pruning.

The forget set shows the trait to remove, the retain set its opposite. With p+ and p- the shares
of positions at which the activation function of a neuron gives more than 0 on retain and on
forget, delta = p+ - p-. While the model runs, neurons with delta > 0.1 get
z := z + gamma * a95 * f(delta), a95 the 95th percentile of z on the retain set, and neurons with
delta < -0.1 get z := min(z, 0). gamma is `strength`.

As published, both acts change what the activation function gives; here they change z, which in a
gated MLP is that value times the up projection's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.methods.base import Evidence, Method, Outcome, merged
from expunge.plan import SiteEdit

LEAST = 0.1
LEVEL = 0.95
STEEPNESS, CENTRE = 10.0, 0.15


def weight_of(delta: Tensor) -> Tensor:
    """f: a logistic function of |delta|, one half at 0.15."""
    return torch.sigmoid(STEEPNESS * (delta.abs() - CENTRE))


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Amplify the neurons of the retain set, switch off those of the forget set."""
    assert evidence.access is not None
    gates = evidence.access.measure("gates")
    deltas: dict[str, Tensor] = {}
    for site in evidence.sites:
        plus, minus = (merged(gates, data, site.key) for data in ("retain", "forget"))
        if plus is not None and minus is not None:
            deltas[site.key] = (plus.share_over - minus.share_over).cpu()
    raised = {k: torch.nonzero(d > LEAST)[:, 0] for k, d in deltas.items()}
    raised = {k: index for k, index in raised.items() if index.numel()}
    high = evidence.access.quantile("retain", LEVEL, raised) if raised else {}
    edits = {}
    for key, delta in deltas.items():
        index = torch.nonzero(delta.abs() > LEAST)[:, 0]
        if not index.numel():
            continue
        add = torch.zeros_like(delta)
        if key in raised:
            gain = weight_of(delta[raised[key]])
            add[raised[key]] = (config.strength or 0.0) * high[key].cpu() * gain
        edits[key] = SiteEdit(steer=(index, add[index].float(), delta[index] < 0))
    counts = {
        "amplified": sum(i.numel() for i in raised.values()),
        "switched_off": sum(int(e.steer[2].sum()) for e in edits.values() if e.steer),
    }
    return Outcome(edits, {k: -d for k, d in deltas.items()}, counts)


METHOD = Method(
    name="traits",
    about="steer: amplify the neurons of retain, switch off those of forget (gamma = --strength)",
    decide=decide,
    towers=("language",),
    strength=1.0,
)
