"""Judge candidate edits: what they forget, and what held-out retain subjects lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from expunge.data import CONDITIONS, Example
from expunge.edit import edited
from expunge.methods.base import Verdict
from expunge.models import Prompter
from expunge.plan import SiteEdit
from expunge.probe_set import ProbeSet
from expunge.sites import Site

QUESTIONS = 128
ALTERNATIVES = 2


class Judge:
    """Asks the same questions of a model under different edits.

    Args:
        model: The model; unchanged between calls.
        prompter: How conversations are rendered.
        sites: Sites by key.
        forget: Questions to be forgotten.
        held_out: Questions about retain subjects that are in no statistics.
        others: Where other subjects' answers are drawn from.
        seed: Of the draw of questions and of other answers.
        batch_size: Questions per forward pass.
        questions: At most so many questions of each kind per condition.
    """

    def __init__(
        self,
        model: Any,
        prompter: Prompter,
        sites: Mapping[str, Site],
        forget: Sequence[Example],
        held_out: Sequence[Example],
        others: Sequence[Example],
        *,
        seed: int = 0,
        batch_size: int = 64,
        questions: int = QUESTIONS,
    ) -> None:
        self.model, self.sites = model, sites
        rng = np.random.default_rng([seed, 5])
        asked = drawn(forget, questions, rng)
        swapped = [s for e in asked for s in with_other_answers(e, others, rng)]
        kept = drawn(held_out, questions, rng)
        self.sets = {
            (name, condition): ProbeSet(model, prompter, rows, condition, batch_size=batch_size)
            for name, rows in (("forget", asked), ("other", swapped), ("held_out", kept))
            for condition in CONDITIONS
        }

    def __call__(self, edits: Mapping[str, SiteEdit]) -> Verdict:
        """The verdict on the model under `edits`."""
        with edited(self.model, self.sites, edits):
            found = {key: s.run(self.model) for key, s in self.sets.items() if s.size}

        def by_condition(name: str, what: str) -> dict[str, float]:
            return {c: getattr(f, what) for (n, c), f in found.items() if n == name}

        return Verdict(
            by_condition("forget", "accuracy"),
            by_condition("forget", "mean_nll"),
            by_condition("other", "mean_nll"),
            by_condition("held_out", "accuracy"),
            by_condition("held_out", "mean_nll"),
        )


def drawn(
    examples: Sequence[Example], number: int, rng: np.random.Generator
) -> list[Example]:
    """At most `number` examples, drawn evenly over subjects."""
    if len(examples) <= number:
        return list(examples)
    order = rng.permutation(len(examples))
    seen: dict[str, int] = {}
    turn = []
    for i in order:
        subject = examples[i].subject
        seen[subject] = seen.get(subject, 0) + 1
        turn.append((seen[subject], i))
    return [examples[i] for _, i in sorted(turn)[:number]]


def with_other_answers(
    example: Example, others: Sequence[Example], rng: np.random.Generator
) -> list[Example]:
    """The same question with answers that are right for somebody else."""
    wrong = [c for c in example.choices or () if c != example.answer]
    if not wrong:
        alike = [o for o in others if o.task == example.task and o.attribute == example.attribute]
        wrong = sorted({o.answer for o in alike} - {example.answer})
    if not wrong:
        wrong = sorted({o.answer for o in others} - {example.answer})
    picked = rng.permutation(len(wrong))[:ALTERNATIVES]
    return [replace(example, answer=wrong[i]) for i in picked]
