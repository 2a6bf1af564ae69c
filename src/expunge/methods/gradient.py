"""Gradient baselines (METHODS: the paper's): GA, GradDiff, KL, NPO and IdkNLL.

Each trains LoRA factors on the down projections of the chosen sites, on answer tokens only, and
searches the same grid of learning rates and steps; the factors become low-rank edits. The search
is written to the notes of the outcome. Formulas: `expunge.tune`.
"""

from __future__ import annotations

from functools import partial

from expunge.config import RunConfig
from expunge.methods.base import Evidence, Grid, Method, Outcome
from expunge.plan import SiteEdit

GRID = Grid()
ABOUT = {
    "ga": "gradient ascent on the forget answers",
    "graddiff": "gradient ascent on forget, descent on retain answers",
    "kl": "gradient ascent on forget, close to vanilla on retain",
    "npo": "negative preference optimisation on the forget answers",
    "npo-retain": "negative preference optimisation, with descent on retain answers",
    "idk": "training to refuse the forget questions, with descent on retain answers",
}


def decide(evidence: Evidence, config: RunConfig, objective: str) -> Outcome:
    """Search, train and return low-rank edits of every chosen site."""
    assert evidence.access is not None
    tuned = evidence.access.tune(objective, GRID)
    edits = {key: SiteEdit(lowrank=factors) for key, factors in tuned.factors.items()}
    return Outcome(edits, notes={"search": dict(tuned.notes)})


METHODS = tuple(
    Method(
        name=name,
        about=f"{about} (LoRA, searched)",
        decide=partial(decide, objective=name),
        towers=("connector", "language"),
    )
    for name, about in ABOUT.items()
)
