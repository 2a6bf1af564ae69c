"""MANU as its authors' released code computes it, for comparing with published numbers.

It looks at the outputs of the linear layers (gate, up and down, or fc1 and fc2) of the last three
layers of each tower, not at z. With I_k in {mean |y|, share of |y| > tau, std y, rms y} and
weights w = {2, 0, 2, 2}, the score of an output is sum_k w_k (I_k(D_f) / (I_k(D_r) + 1e-5) - 1),
the vision tower's under `multi`, the language tower's under `text`; the top share of the outputs
of each tower loses its row.

What differs here, because a plan edits down projections alone:
- A row of gate, up or fc1 is expressed by pruning its neuron. In a gated MLP that is the same
  output bit for bit (either factor is 0, unless the map has a bias); with fc1 it is what zeroing
  weight row and bias would do under an activation function with f(0) = 0.
- A row of down or fc2 is zeroed exactly, as a low-rank edit; the bias of fc2 stays.
- The last three layers are the last three that the model uses: rows of a layer whose output is
  never read (the end of a LLaVA vision tower) change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.errors import InputError
from expunge.methods.base import Evidence, Measured, Method, Outcome, SiteLike
from expunge.plan import SiteEdit
from expunge.selection import select
from expunge.stats import NeuronStats

LAYERS = 3
EPS = 1e-5
WEIGHTS = {"abs": 2.0, "freq": 0.0, "std": 2.0, "rms": 2.0}


def score(forget: NeuronStats, retain: NeuronStats) -> Tensor:
    """sum_k w_k (I_k(D_f) / (I_k(D_r) + 1e-5) - 1), float64 [outputs]."""
    terms = []
    for name, weight in WEIGHTS.items():
        mine, other = (_importance(name, s) for s in (forget, retain))
        terms.append(weight * (mine / (other + EPS) - 1))
    return sum(terms[1:], terms[0]).cpu()


def _importance(name: str, stats: NeuronStats) -> Tensor:
    if name == "abs":
        return stats.mean_abs
    if name == "freq":
        return stats.share_over
    return stats.std if name == "std" else stats.mean_square.sqrt()


def last_layers(evidence: Evidence) -> list[SiteLike]:
    """The MLP sites of the last three live layers of each tower."""
    towers: dict[str, list[SiteLike]] = {}
    for site in evidence.sites:
        if site.kind == "mlp":
            towers.setdefault(site.tower, []).append(site)
    return [site for each in towers.values() for site in each[-LAYERS:]]


def row_scores(sites: list[SiteLike], measured: Measured) -> dict[str, Tensor]:
    """Score of every row by `<site key>/<linear layer>`, each tower under its condition."""
    found = {}
    for site in sites:
        condition = "text" if site.tower == "language" else "multi"
        sets: list[Mapping[str, NeuronStats]] = []
        for data in ("forget", "retain"):
            if (data, condition) not in measured:
                raise InputError(
                    f"manu-released needs {condition} questions in the {data} set for the"
                    f" {site.tower} tower; add some, or leave the tower out with --towers"
                )
            sets.append(measured[data, condition])
        for name in (n for n in sets[0] if n.startswith(f"{site.key}/")):
            found[name] = score(sets[0][name], sets[1][name])
    return found


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Zero the rows with the top share of the scores, ranked in each tower by itself."""
    assert evidence.access is not None and evidence.weight is not None
    sites = last_layers(evidence)
    rows = row_scores(sites, evidence.access.measure("linears"))
    if not rows:
        raise InputError("manu-released finds no linear layers of a known layout in these towers")
    chosen = select(rows, config.budget or 0.0, per_tower=True)
    edits: dict[str, SiteEdit] = {}
    scores: dict[str, Tensor] = {}
    for site in sites:
        down = site.path.rpartition(".")[2]
        into = [n for n in rows if n.startswith(f"{site.key}/") and n != f"{site.key}/{down}"]
        if into:
            halves = torch.cat([rows[n].view(-1, site.width) for n in into])
            scores[site.key] = halves.amax(0)
        silent = [chosen[n] % site.width for n in into if n in chosen]
        edit = SiteEdit(
            prune=torch.unique(torch.cat(silent)) if silent else None,
            lowrank=_without_rows(evidence.weight(site.key), chosen.get(f"{site.key}/{down}")),
        )
        if edit.kind:
            edits[site.key] = edit
    return Outcome(edits, scores, {"rows": {n: int(i.numel()) for n, i in chosen.items()}})


def _without_rows(weight: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """A B = minus the given rows of the weight [out, width], exactly; None without rows."""
    if index is None:
        return None
    exact = weight.detach().cpu().to(torch.promote_types(weight.dtype, torch.float32))
    a = torch.zeros(len(exact), index.numel(), dtype=exact.dtype)
    a[index, torch.arange(index.numel())] = -1.0
    return a, exact[index].contiguous()


METHOD = Method(
    name="manu-released",
    about="MANU as its released code has it: rows of the last three layers of each tower",
    decide=decide,
    budget=0.02,
)
