"""Judge candidate edits: what they forget, and what retain subjects they never saw lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from expunge.data import CONDITIONS, Example
from expunge.edit import edited
from expunge.methods.base import Verdict
from expunge.models import Prompter
from expunge.plan import SiteEdit
from expunge.probe_set import Forcing, ProbeSet
from expunge.sites import Site

FORGET = 72
HELD_OUT = 180
ALTERNATIVES = 1


class Judge:
    """Asks the same questions of a model under different edits.

    Args:
        model: The model; unchanged between calls.
        prompter: How conversations are rendered.
        sites: Sites by key.
        forget: Questions to be forgotten.
        folds: Retain questions in folds that share no subject.
        seed: Of the draw of questions and of other answers.
        batch_size: Questions per forward pass.
    """

    def __init__(
        self,
        model: Any,
        prompter: Prompter,
        sites: Mapping[str, Site],
        forget: Sequence[Example],
        folds: Sequence[Sequence[Example]],
        *,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.model, self.sites = model, sites
        rng = np.random.default_rng([seed, 5])
        asked = drawn(forget, FORGET, rng)
        others = [e for fold in folds for e in fold]
        sets = {
            "forget": asked,
            "other": [s for e in asked for s in with_other_answers(e, others, rng)],
        }
        each = math.ceil(HELD_OUT / max(len(folds), 1))
        sets |= {str(i): drawn(fold, each, rng) for i, fold in enumerate(folds)}
        self.sets = {
            (name, condition): ProbeSet(model, prompter, rows, condition, batch_size=batch_size)
            for name, rows in sets.items()
            for condition in CONDITIONS
        }

    def __call__(
        self, edits: Mapping[str, SiteEdit], without: Sequence[Mapping[str, SiteEdit]]
    ) -> Verdict:
        """Judge a candidate.

        Args:
            edits: The candidate, made with all retain subjects.
            without: The same made without fold 0, without fold 1 and so on; each is asked about
                the fold that it never saw.
        """
        found = self._run(("forget", "other"), edits)
        for fold, candidate in enumerate(without):
            found |= self._run((str(fold),), candidate)

        def mean(names: Sequence[str], what: str) -> dict[str, float]:
            answers = {
                c: torch.cat(
                    [getattr(found[n, c], what).double() for n in names if (n, c) in found]
                )
                for c in CONDITIONS
                if any((n, c) in found for n in names)
            }
            return {c: float(a.mean()) for c, a in answers.items()}

        folds = [str(i) for i in range(len(without))]
        return Verdict(
            mean(["forget"], "recalled"),
            mean(["forget"], "nll"),
            mean(["other"], "nll"),
            mean(folds, "recalled"),
            mean(folds, "nll"),
        )

    def _run(
        self, names: Sequence[str], edits: Mapping[str, SiteEdit]
    ) -> dict[tuple[str, str], Forcing]:
        with edited(self.model, self.sites, edits):
            return {
                key: probes.run(self.model)
                for key, probes in self.sets.items()
                if key[0] in names and probes.size
            }


def drawn(examples: Sequence[Example], number: int, rng: np.random.Generator) -> list[Example]:
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
