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
        self.forget = Questions(asked, strange, guesses)
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
        everybody = frozenset(self.groups.values())
        self.whole = {c: self._encoded(c, everybody) for c in CONDITIONS}
        self.some: dict[str, Asked] = {}

    def __call__(
        self, edits: Mapping[str, SiteEdit], without: Sequence[Mapping[str, SiteEdit]]
    ) -> Verdict:
        """Judge a candidate.

        Args:
            edits: The candidate, made with all retain subjects.
            without: The same made without fold 0, without fold 1 and so on; each is asked about
                the fold that it never saw.
        """
        everybody = {c: each.groups for c, each in self.whole.items()}
        with edited(self.model, self.sites, edits):
            whole = self._forgotten(everybody, edits)
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
        groups: dict[str, set[str]] = {}
        for condition, group in parts:
            groups.setdefault(condition, set()).add(group)
        with edited(self.model, self.sites, edits):
            return self._forgotten(groups, edits)

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

    def _forgotten(
        self, groups: Mapping[str, Collection[str]], edits: Mapping[str, SiteEdit]
    ) -> Verdict:
        """What edits that are carried out leave, by condition of what is asked about groups.

        Of this little is asked exactly: how often an answer is the likeliest, or likelier than
        another, so that half the bits tell it.
        """
        asked = {c: self._asked(c, frozenset(some)) for c, some in groups.items()}
        with half_products(self.model):
            found = {
                c: (each.questions, self.trunk.run(each.probes, edits))
                for c, each in asked.items()
                if each.probes.size
            }
        apart = {
            g: _left({c: (*each, self._places(each[0], g)) for c, each in found.items()})
            for g in sorted({g for some in groups.values() for g in some})
        }
        whole = _left({c: (*each, range(len(each[0].asked))) for c, each in found.items()})
        return replace(whole, apart=apart)

    def _asked(self, condition: str, groups: frozenset[str]) -> Asked:
        """The forget questions about some groups; all, and the last others, are held."""
        for asked in (self.whole[condition], self.some.get(condition)):
            if asked is not None and asked.groups == groups:
                return asked
        self.some[condition] = self._encoded(condition, groups)
        return self.some[condition]

    def _encoded(self, condition: str, groups: frozenset[str]) -> Asked:
        places = [
            i
            for i, e in enumerate(self.forget.asked)
            if e.has(condition) and self.groups[e.subject] in groups
        ]
        questions = self.forget.chosen(places)
        strangers = [s for each in questions.strange for s in each]
        # together, since they share their questions
        return Asked(groups, questions, self.probes([*questions.asked, *strangers], condition))

    def _places(self, questions: Questions, group: str) -> list[int]:
        return [i for i, e in enumerate(questions.asked) if self.groups[e.subject] == group]

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
class Questions:
    """Forget questions.

    Attributes:
        asked: The questions.
        strange: The same with answers that are right for somebody else, for each of `asked`.
        guesses: How often somebody who never knew would be right, for each.
    """

    asked: Sequence[Example]
    strange: Sequence[Sequence[Example]]
    guesses: Sequence[float]

    def chosen(self, places: Sequence[int]) -> Questions:
        """Some of them."""
        asked, strange, guesses = self.asked, self.strange, self.guesses
        return Questions(
            [asked[i] for i in places], [strange[i] for i in places], [guesses[i] for i in places]
        )

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(place of a question, place of a stranger's answer to it among all strangers')."""
        owners = [i for i, each in enumerate(self.strange) for _ in each]
        return [(i, j) for j, i in enumerate(owners)]


@dataclass(frozen=True)
class Asked:
    """Forget questions about some groups of subjects under a condition, ready to run.

    Attributes:
        groups: The groups.
        questions: The questions.
        probes: The same, and after them the strangers' answers.
    """

    groups: frozenset[str]
    questions: Questions
    probes: ProbeSet


def _left(found: Mapping[str, tuple[Questions, Forcing, Sequence[int]]]) -> Verdict:
    """What is left of some questions, by condition the places of those that count."""
    columns: dict[str, dict[str, float]] = {name: {} for name in FORGOTTEN}
    asked, guessed = {}, {}
    for condition, (questions, both, places) in found.items():
        mine = list(places)
        if not mine:
            continue
        own, strange = both.divided(len(questions.asked))
        asked[condition] = len(mine)
        guessed[condition] = sum(questions.guesses[i] for i in mine) / len(mine)
        columns["recalled"][condition] = _mean([own.recalled[mine]])
        columns["nll"][condition] = _mean([own.nll[mine]])
        counted = set(mine)
        theirs = [(i, j) for i, j in questions.pairs if i in counted]
        if not theirs:
            continue
        others = [j for _, j in theirs]
        columns["other_recalled"][condition] = _mean([strange.recalled[others]])
        columns["other_nll"][condition] = _mean([strange.nll[others]])
        apart = strange.nll[others] - own.nll[[i for i, _ in theirs]]
        columns["likelier"][condition] = float((apart.sign() + 1).mean()) / 2
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
