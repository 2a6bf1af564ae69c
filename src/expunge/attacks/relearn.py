"""Fine-tuning after unlearning: does knowledge come back faster than gold would learn it?"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from expunge import metrics
from expunge.attacks.base import ASKED_WITH, Attack, Candidate, Context, Result
from expunge.data import CONDITIONS, Example
from expunge.encoding import batches
from expunge.evaluate import answer_logits
from expunge.probe_set import ProbeSet

STEPS = (0, 5, 10, 20, 50, 100)
BATCH = 16
FEW = 0.1
RATE = 1e-3  # for a million parameters

DRAWS = {"other facts": 3}
"""Split -> how many draws of it a curve is the mean of, since one says little; else one."""

Curves = dict[str, dict[str, list[float]]]  # by model and condition
Split = tuple[list[Example], list[Example]]  # questions to learn from, questions to measure on


def rate_for(model: Any) -> float:
    """Learning rate: 1e-3 at a million parameters, falling with the root of their number."""
    parameters = sum(p.numel() for p in model.parameters())
    return RATE / math.sqrt(max(1.0, parameters / 1e6))


def fact(example: Example) -> tuple[str, str]:
    """What an example would give away: its subject with its answer."""
    return example.subject, metrics.normalise(example.answer)


def splits(context: Context) -> dict[str, Split]:
    """What to learn from and what to measure on; no fact is in both.

    `other facts` learns half of the forget facts and measures the other half, `retain only` learns
    nothing of the forget set, `few subjects` learns all about a tenth of the forget subjects. A
    split with nothing to learn, or nothing to measure, is left out.
    """
    sets = context.suite.sets
    forget = list(sets["forget"])
    asked = [*forget, *sets.get("test", ())]
    draw = random.Random(context.seed)
    facts = sorted({fact(e) for e in asked})
    told = set(draw.sample(facts, len(facts) // 2))
    subjects = sorted({e.subject for e in forget})
    few = set(draw.sample(subjects, math.ceil(FEW * len(subjects))))
    found = {
        "other facts": (
            [e for e in forget if fact(e) in told],
            [e for e in asked if fact(e) not in told],
        ),
        "retain only": (list(sets.get("retain", ())), asked),
        "few subjects": (
            [e for e in forget if e.subject in few],
            [e for e in asked if e.subject not in few],
        ),
    }
    return {k: (a, _open(b)) for k, (a, b) in found.items() if a and b}


def _open(examples: Sequence[Example]) -> list[Example]:
    """The questions without choices, whose recall cannot be guessed; all where there are none."""
    found = [e for e in examples if not e.choices]
    return found or list(examples)


def learn(
    model: Any, candidate: Candidate, examples: Sequence[Example], steps: range, seed: int
) -> Iterator[int]:
    """Take optimiser steps on the model in place, yielding after each.

    AdamW on all weights without decay, `BATCH` questions a step, the conditions in turn; the loss
    is the mean over answer tokens and the end. Step n asks the same questions for one seed.

    Yields:
        The number of steps done.
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=rate_for(model), weight_decay=0.0)
    pools = [p for c in CONDITIONS if (p := [(e, c) for e in examples if e.has(c)])]
    draw = random.Random(seed)
    for step in steps:
        pool = pools[step % len(pools)]
        chosen = draw.sample(pool, min(BATCH, len(pool)))
        condition = chosen[0][1]
        rows = [e for e, _ in chosen]
        for batch in batches(model, candidate.prompter, rows, condition, batch_size=BATCH):
            logits, predicts = answer_logits(model, batch)
            where = torch.nonzero(predicts)
            target = batch.tokens[where[:, 0], where[:, 1] + 1]
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(logits, target))
            optimiser.step()
        yield step + 1


def curves(
    context: Context, candidate: Candidate, split: Split, steps: Sequence[int] = STEPS
) -> dict[str, list[float]]:
    """Recall by condition at each of `steps` while a copy of the model is fine-tuned."""
    train, measured = split
    twin = copy.deepcopy(candidate.model)
    probes = {}
    for condition in CONDITIONS:
        rows = context.draw([e for e in measured if e.has(condition)])
        if rows:
            probes[condition] = ProbeSet(
                twin, candidate.prompter, rows, condition, batch_size=context.batch_size
            )
    found = {c: [p.run(twin).accuracy] for c, p in probes.items()}
    for done in learn(twin, candidate, train, range(steps[-1]), context.seed):
        if done in steps:
            for condition, probe in probes.items():
                found[condition].append(probe.run(twin).accuracy)
    return found


def areas(
    found: Mapping[str, Mapping[str, Sequence[float]]], steps: Sequence[int]
) -> dict[str, float | None]:
    """Mean lead over gold by condition, from model -> condition -> curve."""
    gold = found.get("gold", {})
    return {c: metrics.recovery_area(steps, u, gold.get(c)) for c, u in found["unlearned"].items()}


def run(context: Context, steps: Sequence[int] = STEPS) -> Result:
    """Fine-tune copies of unlearned and gold in three ways, `DRAWS` times."""
    rows: list[list[Any]] = []
    lines: dict[str, list[list[float]]] = {}
    figures: dict[str, float | None] = {}
    spread: dict[str, list[float]] = {}
    for name in splits(context):
        draws = range(DRAWS.get(name, 1))
        drawn = [_drawn(replace(context, seed=context.seed + i), name, steps) for i in draws]
        found = _mean(drawn)
        known = found.pop("vanilla")
        for condition, unlearned in found["unlearned"].items():
            gold = found.get("gold", {}).get(condition, [None] * len(steps))
            for step, ours, theirs in zip(steps, unlearned, gold, strict=True):
                label = ASKED_WITH[condition]
                rows.append([name, label, step, known[condition][0], ours, theirs])
        found["vanilla"] = {c: v * len(steps) for c, v in known.items()}
        for model, by_condition in found.items():
            means = [sum(v) / len(v) for v in zip(*by_condition.values(), strict=True)]
            lines[f"{name}, {model}"] = [list(p) for p in zip(steps, means, strict=True)]
        for condition, area in areas(found, steps).items():
            title = f"area above gold, {name}, {ASKED_WITH[condition]}"
            figures[title] = area
            if area is not None and len(draws) > 1:
                each = [areas(draw, steps)[condition] for draw in drawn]
                spread[title] = [a for a in each if a is not None]
    return {
        "title": "Relearning",
        "columns": ["learned from", "asked with", "steps", "vanilla", "unlearned", "gold"],
        "rows": rows,
        "curves": lines,
        "axes": ["fine-tuning steps", "accuracy"],
        "note": _note(context, figures, spread),
        "figures": figures,
    }


def _drawn(context: Context, name: str, steps: Sequence[int]) -> Curves:
    """One draw of a split: model -> condition -> curve, of vanilla the first point alone."""
    split = splits(context)[name]
    return {
        model: curves(context, candidate, split, (0,) if model == "vanilla" else steps)
        for model, candidate in context.models.items()
    }


def _mean(drawn: Sequence[Curves]) -> Curves:
    """The mean curves of some draws."""

    def mean(model: str, condition: str) -> list[float]:
        each = [draw[model][condition] for draw in drawn]
        return [sum(points) / len(points) for points in zip(*each, strict=True)]

    return {model: {c: mean(model, c) for c in found} for model, found in drawn[0].items()}


def _between(areas: Sequence[float]) -> str:
    """The least and the greatest of some draws, in brackets."""
    return f" ({min(areas):+.2f} to {max(areas):+.2f})" if areas else ""


def _note(
    context: Context, figures: Mapping[str, float | None], spread: Mapping[str, Sequence[float]]
) -> str:
    rate = rate_for(context.models["unlearned"].model)
    told = [
        f"{name} {area:+.3f}{_between(spread.get(name, ()))}"
        for name, area in figures.items()
        if area is not None
    ]
    return (
        "Share of open questions on facts that were not learned again whose every answer token is"
        " the arg max, while copies are fine-tuned on: the other half of the forget facts (mean of"
        f" {DRAWS['other facts']} draws of that half, in brackets the least and the greatest);"
        f" retain; all about a tenth of the forget subjects. AdamW on all weights, rate {rate:.1e},"
        f" {BATCH} questions a step, the conditions in turn; vanilla is not fine-tuned; curves are"
        " means of both conditions."
        f" {'; '.join(told) or 'No gold, so no area above it'}."
    )


ATTACK = Attack("relearn", "fine-tuning on other forget facts, on retain, on few subjects", run)
