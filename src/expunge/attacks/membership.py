"""Membership inference: whether forget subjects can be told from strangers by the likelihood.

Strangers are subjects whom no model has ever seen. Where none are given, neighbours stand in for
them, whom vanilla and gold know: then a low figure says nothing but that something is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from expunge import metrics
from expunge.attacks.base import ASKED_WITH, MODELS, Attack, Candidate, Context, Result
from expunge.data import CONDITIONS, Example
from expunge.encoding import batches
from expunge.evaluate import Answers

BACKWARD = 24
OTHERS = {
    "stranger": "one about a stranger whom no model has seen",
    "neighbor": "one about a neighbour, whom vanilla and gold know (no stranger set was given)",
}
"""Set to compare with, the first that is there -> what its questions are."""

Scores = dict[str, list[float]]


@torch.inference_mode()
def likelihood_scores(
    candidate: Candidate, examples: Sequence[Example], condition: str, batch_size: int = 64
) -> Scores:
    """The four scores that need no gradient, one figure per example each; larger means member."""
    found: list[dict[str, float]] = [{}] * len(examples)
    model = candidate.model
    for batch in batches(model, candidate.prompter, examples, condition, batch_size=batch_size):
        answers = Answers.of(model, batch)
        logp = answers.logp.double()
        p = logp.exp()
        mu = (p * logp).sum(-1)
        sigma = (p * (logp - mu[:, None]) ** 2).sum(-1).sqrt()
        own = logp.gather(-1, answers.target[:, None])[:, 0].clamp_max(0)
        for place, i in enumerate(batch.rows):
            mine = answers.row == place
            tokens, mean, spread = (t[mine].cpu().numpy() for t in (own, mu, sigma))
            found[i] = {
                "loss": metrics.loss(tokens),
                "zlib": metrics.zlib(tokens, examples[i].answer),
                "min_k": metrics.min_k(tokens),
                "min_k_plus_plus": metrics.min_k_plus_plus(tokens, mean, spread),
            }
    return {name: [row[name] for row in found] for name in found[0]} if found else {}


def gradient_scores(
    candidate: Candidate, examples: Sequence[Example], condition: str
) -> list[float]:
    """Minus the norm of the gradient of each answer's loss over all weights."""
    model = candidate.model
    weights = [p for p in model.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in weights]
    found = [0.0] * len(examples)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for batch in batches(model, candidate.prompter, examples, condition, batch_size=1):
            (loss,) = Answers.of(model, batch).losses()
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
            norms = [float(s.double().norm()) for s in slopes if s is not None]
            found[batch.rows[0]] = metrics.grad_norm(norms)
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    return found


def aucs(context: Context, candidate: Candidate, others: str, condition: str) -> dict[str, float]:
    """AUC of forget against another set by score."""
    sides = []
    for name in ("forget", others):
        rows = context.sample(name, condition)
        scores = likelihood_scores(candidate, rows, condition, context.batch_size)
        few = context.draw(rows, BACKWARD)
        sides.append({**scores, "grad_norm": gradient_scores(candidate, few, condition)})
    members, outside = sides
    return {name: metrics.auc(members[name], outside[name]) for name in members}


def run(context: Context) -> Result:
    """Five membership scores, forget against strangers or, without any, against neighbours."""
    others = next(name for name in OTHERS if name in context.suite.sets)
    rows: list[list[Any]] = []
    figures: dict[str, float | None] = {}
    points: dict[str, dict[str, list[float]]] = {}
    for condition in CONDITIONS:
        if not all(context.sample(name, condition) for name in ("forget", others)):
            continue
        found = {name: aucs(context, c, others, condition) for name, c in context.models.items()}
        label = ASKED_WITH[condition]
        for score, ours in found["unlearned"].items():
            gold = found["gold"][score] if "gold" in found else None
            cells = [found[m][score] if m in found else None for m in MODELS]
            leak = metrics.privleak(ours, gold)
            rows.append([score, label, *cells, None if gold is None else ours - gold, leak])
            for model in found:
                points.setdefault(model, {})[f"{score}, {label}"] = [found[model][score]]
        gaps = [abs(row[5]) for row in rows if row[1] == label and row[5] is not None]
        if gaps:
            figures[f"furthest from gold, {label}"] = max(gaps)
    return {
        "title": "Membership inference",
        "columns": ["score", "asked with", *MODELS, "less gold", "PrivLeak, %"],
        "rows": rows,
        "dots": points,
        "note": (
            f"Chance that a forget question scores above {OTHERS[others]} (0.5: cannot be told"
            " apart). The aim is gold's figure, not a low one: far below it the forget subjects"
            f" stand out as deleted. grad_norm on at most {BACKWARD} questions a side."
        ),
        "figures": figures,
    }


ATTACK = Attack(
    "membership",
    "five membership scores, forget against strangers",
    run,
    ("forget", tuple(OTHERS)),
)
