"""Deleting under one condition only: what is still known under the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from expunge.attacks.base import (
    ASKED_WITH,
    Attack,
    Candidate,
    Context,
    Result,
    Scorer,
    asking,
    compared,
    table,
)
from expunge.data import CONDITIONS, Example


def only(examples: Sequence[Example], condition: str) -> list[Example]:
    """The examples that have a form under `condition`, without their other form."""
    kept = [e for e in examples if e.has(condition)]
    if condition == "multi":
        return [replace(e, text_question=None) for e in kept]
    return [replace(e, question=None, image=None) for e in kept]


def deleted(context: Context, condition: str) -> Scorer:
    """A scorer in which unlearned is vanilla after a deletion under one condition."""
    vanilla = context.models["vanilla"]
    twin = copy.deepcopy(vanilla.model)
    context.remake(only(context.suite.sets["forget"], condition)).apply(twin)
    other = replace(vanilla, name="unlearned", model=twin)
    score = asking(context)

    def ask_other(candidate: Candidate, examples: Sequence[Example], asked: str) -> list[float]:
        return score(other if candidate.name == "unlearned" else candidate, examples, asked)

    return ask_other


def run(context: Context) -> Result:
    """Delete with pictures only and with text only, and ask under both conditions."""
    forget = context.suite.sets["forget"]
    variants = {"deleted under both": asking(context)}
    for condition in CONDITIONS:
        if any(e.has(condition) for e in forget):
            variants[f"deleted with {ASKED_WITH[condition]}"] = deleted(context, condition)
    note = (
        "The run's own method, given the forget questions under one condition only. What is then"
        " still right under the other has leaked; retain was given under both."
    )
    return table("Leakage across conditions", compared(context, variants), note)


ATTACK = Attack("leakage", "deletion under one condition, questions under the other", run)
