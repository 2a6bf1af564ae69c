"""Judge candidate edits: what they forget, and what retain subjects they never saw lose."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from expunge.data import CONDITIONS, Example
from expunge.edit import edited
from expunge.methods.base import FORGOTTEN, OWN_SET, SAID_SET, Part, Verdict
from expunge.models import Prompter
from expunge.plan import SiteEdit
from expunge.precision import half_products
from expunge.probe_set import Forcing, ProbeSet
from expunge.sites import Site
from expunge.trunk import Trunk

FORGET = 144
EACH = 8
MOST_ASKED = 1024
GROUP = 6
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
        said: Texts that the model said itself, to be read with no conversation around them.
        own: Questions about almost nothing, with the model's own answers.
        spare: How many of the last forget questions are asked only where others are too few.
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
        said: Sequence[Example] = (),
        own: Sequence[Example] = (),
        spare: int = 0,
        *,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        self.model, self.sites = model, sites
        self.trunk = Trunk(model, sites)
        self.probes = partial(ProbeSet, model, prompter, batch_size=batch_size)
        plain = partial(ProbeSet, model, prompter.plain, batch_size=batch_size)
        rng = np.random.default_rng([seed, 5])
        subjects = {e.subject for e in forget}
        number = min(max(FORGET, EACH * len(subjects)), MOST_ASKED)
        asked = drawn(forget, number, rng, spare)
        self.groups = grouped(subjects, asked)
        others = [e for fold in folds for e in fold]
        strange = [with_other_answers(e, others, rng) for e in asked]
        guesses = [guess_rate(e, others) for e in asked]
        whole = list(zip(asked, strange, guesses, strict=True))
        each = math.ceil(HELD_OUT / max(len(folds), 1))
        held = {str(i): drawn(fold, each, rng) for i, fold in enumerate(folds)}
        self.owners = {
            (n, c): [e.subject for e in rows if e.has(c)]
            for n, rows in held.items()
            for c in CONDITIONS
        }
        sets = held | {OWN_SET: list(own)}
        self.sets = {(n, c): self.probes(rows, c) for n, rows in sets.items() for c in CONDITIONS}
        for c in CONDITIONS:
            self.sets[SAID_SET, c] = plain(said, c)
            self.sets[SAID_SET, c].expect(model)
        self.forget = {
            (c, g): self._encoded(c, [each for each in whole if self.groups[each[0].subject] == g])
            for c in CONDITIONS
            for g in sorted(set(self.groups.values()))
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
        with edited(self.model, self.sites, edits):
            whole = self._forgotten(self.forget, edits)
            found = self._run(SAID_SET, edits)
        said = [n for each in found.values() for n in each.nll.tolist()]
        for fold, candidate in enumerate(without):
            with edited(self.model, self.sites, candidate):
                found |= self._run(str(fold), candidate)
        folds = [str(i) for i in range(len(without))]
        kept = {
            c: [found[n, c] for n in folds if (n, c) in found]
            for c in CONDITIONS
            if any((n, c) in found for n in folds)
        }
        return replace(
            whole,
            held_out={c: _mean([f.recalled for f in each]) for c, each in kept.items()},
            held_out_nll={c: _mean([f.nll for f in each]) for c, each in kept.items()},
            held_out_error={c: self._error(found, folds, c) for c in kept},
            said=said,
        )

    def about(self, edits: Mapping[str, SiteEdit], parts: Collection[Part]) -> Verdict:
        """See `methods.base.Judging.about`."""
        with edited(self.model, self.sites, edits):
            return self._forgotten(parts, edits)

    def cost(
        self, edits: Mapping[str, SiteEdit], most: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """See `methods.base.Judging.cost`."""
        cost: dict[str, float] = {}
        text_first = [(n, c) for c in reversed(CONDITIONS) for n in ("0", SAID_SET, OWN_SET)]
        with edited(self.model, self.sites, edits):
            for name, condition in text_first:  # which costs less to ask
                of = condition if name == "0" else name
                for each in self._run(name, edits, (condition,)).values():
                    cost[of] = max(_mean([each.nll]), cost.get(of, 0.0))
                if most is not None and cost.get(of, 0.0) > most.get(of, math.inf):
                    break
        return cost

    def _error(
        self, found: Mapping[tuple[str, str], Forcing], folds: Sequence[str], condition: str
    ) -> float:
        """Standard error over subjects of the share of held-out questions recalled."""
        by_subject: dict[str, list[float]] = {}
        for fold in folds:
            if (fold, condition) in found:
                right = found[fold, condition].recalled.tolist()
                for who, each in zip(self.owners[fold, condition], right, strict=True):
                    by_subject.setdefault(who, []).append(float(each))
        shares = [sum(each) / len(each) for each in by_subject.values()]
        return float(np.std(shares, ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else 0.0

    def _forgotten(self, parts: Collection[Part], edits: Mapping[str, SiteEdit]) -> Verdict:
        """What edits that are carried out leave of what some parts are asked.

        Of this little is asked exactly: how often an answer is the likeliest, or likelier than
        another, so that half the bits tell it.
        """
        asked = {part: each for part, each in self.forget.items() if part in parts}
        with half_products(self.model):
            left = {
                part: Left(each, *self.trunk.run(each.probes, edits).divided(each.number))
                for part, each in asked.items()
                if each.number
            }
        of = {g: {c: [left[c, g]] for c in CONDITIONS if (c, g) in left} for _, g in asked}
        apart = {g: _verdict(each) for g, each in of.items()}
        both = {c: [each for part, each in left.items() if part[0] == c] for c in CONDITIONS}
        return replace(_verdict({c: each for c, each in both.items() if each}), apart=apart)

    def _encoded(
        self, condition: str, forget: Sequence[tuple[Example, Sequence[Example], float]]
    ) -> Asked:
        """Questions with their strangers' answers and guess rates, as far as they have the form."""
        mine = [each for each in forget if each[0].has(condition)]
        owners = [i for i, (_, strange, _) in enumerate(mine) for _ in strange]
        rows = [e for e, _, _ in mine] + [e for _, strange, _ in mine for e in strange]
        # together, since they share their questions
        return Asked(self.probes(rows, condition), owners, [guess for _, _, guess in mine])

    def _run(
        self,
        name: str,
        edits: Mapping[str, SiteEdit],
        conditions: Collection[str] = CONDITIONS,
    ) -> dict[tuple[str, str], Forcing]:
        """How the model does on a set under edits that are carried out already.

        What answers to almost nothing may lose is a matter of tenths (`erase.OTHERWISE`), and half
        the bits tell it; what others may lose is one of thousandths.
        """
        with half_products(self.model, name == OWN_SET):
            return {
                (name, c): self.trunk.run(probes, edits)
                for c in CONDITIONS
                if c in conditions and (probes := self.sets[name, c]).size
            }


@dataclass(frozen=True)
class Asked:
    """Forget questions about a group of subjects under a condition, ready to run.

    A group is run apart from the others, so that what the layers before an edit pass on is held
    for it (see `Trunk`) whoever else is asked about.

    Attributes:
        probes: The questions, and after them the same with answers that are right for others.
        owners: The place of the question of each of those.
        guesses: For each question, how often somebody who never knew would be right.
    """

    probes: ProbeSet
    owners: Sequence[int]
    guesses: Sequence[float]

    @property
    def number(self) -> int:
        """How many questions."""
        return len(self.guesses)


@dataclass(frozen=True)
class Left:
    """How a model does on questions of a group.

    Attributes:
        asked: The questions.
        own: With their own answers.
        strange: With strangers'.
    """

    asked: Asked
    own: Forcing
    strange: Forcing


def _verdict(left: Mapping[str, Sequence[Left]]) -> Verdict:
    """What is left of some questions, by condition and group."""
    columns: dict[str, dict[str, float]] = {name: {} for name in FORGOTTEN}
    asked, guessed = {}, {}
    for condition, groups in left.items():
        asked[condition] = sum(each.asked.number for each in groups)
        guesses = [guess for each in groups for guess in each.asked.guesses]
        guessed[condition] = sum(guesses) / len(guesses)
        columns["recalled"][condition] = _mean([each.own.recalled for each in groups])
        columns["nll"][condition] = _mean([each.own.nll for each in groups])
        if not any(each.asked.owners for each in groups):
            continue
        columns["other_recalled"][condition] = _mean([each.strange.recalled for each in groups])
        columns["other_nll"][condition] = _mean([each.strange.nll for each in groups])
        apart = [each.strange.nll - each.own.nll[each.asked.owners] for each in groups]
        columns["likelier"][condition] = (_mean([each.sign() for each in apart]) + 1) / 2
    return Verdict(
        columns["recalled"],
        columns["nll"],
        columns["other_nll"],
        {},
        {},
        columns["likelier"],
        columns["other_recalled"],
        asked=asked,
        guessed=guessed,
    )


def _mean(parts: Sequence[torch.Tensor]) -> float:
    return float(torch.cat([part.double() for part in parts]).mean())


def drawn(
    examples: Sequence[Example], number: int, rng: np.random.Generator, spare: int = 0
) -> list[Example]:
    """At most `number` examples, drawn evenly over subjects; the last `spare` after the others."""
    if len(examples) <= number:
        return list(examples)
    first = len(examples) - spare
    order = [*rng.permutation(first), *(first + rng.permutation(spare))]
    seen: dict[str, int] = {}
    turn = []
    for i in order:
        subject = examples[i].subject
        seen[subject] = seen.get(subject, 0) + 1
        turn.append((seen[subject], i))
    return [examples[i] for _, i in sorted(turn)[:number]]


def grouped(subjects: Iterable[str], asked: Sequence[Example]) -> dict[str, str]:
    """Subject -> the group it is judged in: its own, or "" with all about whom little is asked.

    Args:
        subjects: All of them.
        asked: What is asked about them; `GROUP` questions under a condition are enough.
    """
    number = Counter((e.subject, c) for e in asked for c in CONDITIONS if e.has(c))
    least = {s: min([n for c in CONDITIONS if (n := number[s, c])], default=0) for s in subjects}
    return {s: s if least[s] >= GROUP else "" for s in least}


def guess_rate(example: Example, others: Sequence[Example]) -> float:
    """How often somebody who never knew would be right: who draws from what others answer.

    Of choices one of them; else how often two others who are asked the same give one answer.
    """
    if example.choices:
        return 1 / len(example.choices)
    alike = _alike(example, others)
    number = Counter(o.answer for o in alike).values()
    return sum(n * (n - 1) for n in number) / max(1, len(alike) * (len(alike) - 1))


def _alike(example: Example, others: Sequence[Example]) -> list[Example]:
    return [o for o in others if o.task == example.task and o.attribute == example.attribute]


def with_other_answers(
    example: Example, others: Sequence[Example], rng: np.random.Generator
) -> list[Example]:
    """The same question with answers that are right for somebody else."""
    wrong = [c for c in example.choices or () if c != example.answer]
    if not wrong:
        wrong = sorted({o.answer for o in _alike(example, others)} - {example.answer})
    if not wrong:
        wrong = sorted({o.answer for o in others} - {example.answer})
    picked = rng.permutation(len(wrong))[:ALTERNATIVES]
    return [replace(example, answer=wrong[i]) for i in picked]
