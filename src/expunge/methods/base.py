"""What every method has in common: what it needs, what it is given, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.plan import SiteEdit
from expunge.stats import Moment, NeuronStats

if TYPE_CHECKING:
    from expunge.sites import Values

PICTURE = "picture"
"""The condition `multi` at the positions of the image alone, where a method asks for it."""
END = "end"
"""Either condition at the last position of every question alone."""
ASIDE = "aside"
"""Name of the retain subjects that are put aside to judge by."""
NOISE_SET = "noise"
"""Name of the set of questions about nothing, see `expunge.noise`."""
UNSEEN_SET = "unseen"
"""Name of the set of more such questions, to which nothing is fitted: thresholds are."""
PLAIN_SET = "plain"
"""Name of the set of texts that the model said itself, with no conversation around them."""
ASKED_SET = "asked"
"""Name of the questions about forget subjects that the forget set lacks, see `expunge.augment`."""
ENDS_SET = "ends"
"""Name of the forget questions and, after them, the same among other words: `augment.among`."""
BESIDE = {NOISE_SET: 0.5, PLAIN_SET: 0.5}
"""Sets that stand for what no retain set shows, and how much each counts where retain counts 1."""
SAID_SET = "said"
"""Name of the set of texts that the model said itself and that are put aside to judge by."""
OWN_SET = "own"
"""Name of the set of questions about almost nothing with the model's own answers, to judge by."""

SITES = 8
"""Sites at most that the default method changes first, in a model of whatever depth."""

Part = tuple[str, str]
"""A condition and a group of subjects (see `judge.Judge.groups`), or "" for all of them."""

Measured = Mapping[tuple[str, str], Mapping[str, NeuronStats]]
"""(set, condition) -> site key -> statistics."""


class SiteLike(Protocol):
    """The part of a site that methods look at."""

    @property
    def key(self) -> str:
        """Site key such as `language.3`."""

    @property
    def path(self) -> str:
        """Module path of the down projection."""

    @property
    def kind(self) -> str:
        """`mlp`, `expert` or `attention`."""

    @property
    def tower(self) -> str:
        """Tower the site is in."""

    @property
    def width(self) -> int:
        """Number of neurons."""


@dataclass(frozen=True)
class Grid:
    """A search over learning rates and steps; every objective gets the same one.

    Attributes:
        rates: Learning rates; each is one training run.
        steps: Optimiser steps after which a run is looked at; each look is a candidate.
        rank: Rank of the LoRA factors.
        batch_size: Examples of each set per step.
        held_out: Share of the retain subjects that are not trained on, to choose by.
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: tuple[int, ...] = (10, 30, 90)
    rank: int = 8
    batch_size: int = 8
    held_out: float = 0.25


@dataclass(frozen=True)
class Tuned:
    """What a search over training runs chose.

    Attributes:
        factors: Site key -> (A [out, rank], B [rank, width]) to add to the down projection.
        notes: The search: every candidate, the rule, the choice; JSON values.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """What entered the MLP of a site, a row per position.

    Attributes:
        x: Inputs, float32 [n, in].
        picture: Whether the position holds a part of a picture, bool [n].
        used: Root mean square of z over all positions run, float32 [width].
        stream: What the site's layer passed on, float32 [n, out]; only where asked for.
        question: Place of the question in its set, int64 [n]; only where they are told apart, and
            then the positions of a question stand together and in order.
        answer: Whether the position holds a token of the answer, bool [n]; the same.
    """

    x: Tensor
    picture: Tensor
    used: Tensor
    stream: Tensor | None = None
    question: Tensor | None = None
    answer: Tensor | None = None

    def of_first(self, number: int) -> Tokens:
        """The positions of the first `number` questions."""
        assert self.question is not None and self.answer is not None
        inside = self.question < number
        stream = None if self.stream is None else self.stream[inside]
        x, picture = self.x[inside], self.picture[inside]
        question, answer = self.question[inside], self.answer[inside]
        return Tokens(x, picture, self.used, stream, question, answer)

    @cached_property
    def asked(self) -> Tensor:
        """Whether the position is before the answer of its question, bool [n]."""
        assert self.question is not None and self.answer is not None
        told = self.answer.long().cumsum(0)
        place = torch.arange(len(told), device=told.device)
        begins = torch.ones_like(self.answer)
        begins[1:] = self.question[1:] != self.question[:-1]
        first = torch.where(begins, place, 0).cummax(0).values
        return told == (told - self.answer.long())[first]


@dataclass(frozen=True)
class Fit:
    """How new neurons can be put in at a site.

    Attributes:
        gated: Whether a neuron has a second factor, linear in its input.
        bias: Whether its rows can have a bias.
        passed: The share of what it writes that the layer adds to the stream.
    """

    gated: bool
    bias: bool
    passed: float = 1.0


class Access(Protocol):
    """The model behind the evidence, for methods that have to run it themselves."""

    def measure(self, what: str, edits: Mapping[str, SiteEdit] | None = None) -> Measured:
        """Statistics of every set under every condition, with `edits` applied meanwhile.

        Args:
            what: `neurons` z; `positive` max(z, 0) with tau = 0; `gates` the same of what the
                activation function makes of the gate; `linears` outputs of the linear maps, keyed
                `<site key>/<name>`; `attributions` z * dL/dz.
            edits: What is edited while measuring; None is nothing.
        """

    def quantile(
        self, data: str, level: float, chosen: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """The quantile of z over the counted units of one set, for the chosen neurons."""

    def tune(self, objective: str, grid: Grid) -> Tuned:
        """Train LoRA factors on the down projections by a gradient objective."""

    def subjects(self, data: str) -> list[str]:
        """Names of the subjects of a set, sorted."""

    def owners(self, data: str, condition: str) -> list[str]:
        """The subject of every question of a set that has a form under a condition."""

    def fit(self, key: str) -> Fit | None:
        """How new neurons can be put in at a site, None where they cannot."""

    def values(self, key: str) -> Values | None:
        """What biases of values in a site's layer can do, which may stand in for its own."""

    def said(self, key: str, x: Tensor) -> Tensor:
        """What inputs x [n, in] make the neurons of a site say, [n, width]."""

    @property
    def ends(self) -> Tensor | None:
        """What makes the end of an answer likelier; see `ends.end_directions`."""

    def tokens(
        self,
        data: str,
        condition: str,
        keys: Sequence[str],
        edits: Mapping[str, SiteEdit] | None = None,
        *,
        apart: bool = False,
        ends: bool = False,
        streams: bool = False,
        limit: int | None = None,
    ) -> Mapping[str, Tokens]:
        """What enters the MLPs of some sites, by key; see `tokens.collect_tokens`."""


def spread_over(access: Access, sites: Sequence[SiteLike]) -> list[str]:
    """Keys of the sites that can be given new neurons: `SITES` of them, spread over the depth."""
    return spread([s.key for s in sites if access.fit(s.key) is not None], SITES)


def spread(keys: Sequence[str], most: int) -> list[str]:
    """At most so many (two or more), evenly spread, the first and the last among them."""
    if len(keys) <= most:
        return list(keys)
    return [keys[round(i * (len(keys) - 1) / (most - 1))] for i in range(most)]


FORGOTTEN = ("recalled", "nll", "other_recalled", "other_nll", "likelier")
"""What a verdict says by condition of the forget questions that were asked."""


@dataclass(frozen=True)
class Verdict:
    """How one candidate edit does, by condition (`multi`, `text`).

    Attributes:
        recalled: Share of the forget questions whose reference answer is still the greedy one.
        nll: Mean NLL of the reference answers to the forget questions, nats a token.
        other_nll: Mean NLL of other subjects' answers put to the same questions. Where `nll` is
            not below it, the reference answer is no likelier than a stranger's.
        held_out: Share of the held-out retain questions still recalled.
        held_out_nll: Mean NLL of their reference answers.
        held_out_error: Standard error of `held_out` over the subjects; 0 where there is one.
        likelier: How often the reference answer to a forget question is likelier than a stranger's
            answer to it; 0.5 where nobody who never knew could do better.
        other_recalled: Share of the strangers' answers that are the greedy one.
        asked: How many forget questions all these are shares of.
        guessed: Share of them that one who never knew would guess; see `judge.guess_rate`.
        apart: Group of subjects -> the same for its forget questions alone, without what was held
            out.
        said: Loss on each of the texts that the unedited model said by itself, nats a token; see
            `ProbeSet.expect`.
    """

    recalled: Mapping[str, float]
    nll: Mapping[str, float]
    other_nll: Mapping[str, float]
    held_out: Mapping[str, float]
    held_out_nll: Mapping[str, float]
    likelier: Mapping[str, float] = field(default_factory=dict)
    other_recalled: Mapping[str, float] = field(default_factory=dict)
    held_out_error: Mapping[str, float] = field(default_factory=dict)
    asked: Mapping[str, int] = field(default_factory=dict)
    guessed: Mapping[str, float] = field(default_factory=dict)
    apart: Mapping[str, Verdict] = field(default_factory=dict)
    said: Sequence[float] = ()


class Judging(Protocol):
    """Carries candidate edits out on the model for a moment and says what they do."""

    @property
    def groups(self) -> Mapping[str, str]:
        """Forget subject -> the group it is judged in; see `judge.grouped`."""

    def __call__(
        self, edits: Mapping[str, SiteEdit], without: Sequence[Mapping[str, SiteEdit]]
    ) -> Verdict:
        """Judge a candidate, and the same made without each fold of the retain subjects."""

    def about(self, edits: Mapping[str, SiteEdit], parts: Collection[Part]) -> Verdict:
        """What a candidate leaves of the forget questions about some groups under a condition."""

    def cost(
        self, edits: Mapping[str, SiteEdit], most: Mapping[str, float] | None = None
    ) -> Mapping[str, float]:
        """What edits made without the first fold do to all that they never saw.

        Args:
            edits: The edits.
            most: What the costs may come to; no more is asked once one is over. None asks all.

        Returns:
            Mean NLL, nats a token: by condition of that fold's answers, under `said` of texts that
            the unedited model said (see `ProbeSet.expect`), and under `own` of its answers to
            questions about almost nothing, under the condition where that is more.
        """


@dataclass
class Evidence:
    """Everything a method may look at.

    Attributes:
        sites: The live sites of the chosen towers, in order.
        neurons: (set, condition) -> site key -> statistics; set is `forget` or `retain`.
        moments: (set, condition) -> site key -> second moment.
        weight: Returns the down projection of a site, [out, width].
        access: The model, for methods that run it themselves.
        method: Name of the method it was gathered for, which may be another than was asked for.
        judge: Says what candidates do; see `judge.Judge`.
    """

    sites: Sequence[SiteLike]
    neurons: Mapping[tuple[str, str], Mapping[str, NeuronStats]] = field(default_factory=dict)
    moments: Mapping[tuple[str, str], Mapping[str, Moment]] = field(default_factory=dict)
    weight: Callable[[str], Tensor] | None = None
    access: Access | None = None
    judge: Judging | None = None
    method: str | None = None

    @property
    def kept(self) -> list[str]:
        """Names of the sets with moments that stand for what is kept: retain, or its folds."""
        return sorted({name for name, _ in self.moments} - {"forget", *BESIDE})


@dataclass(frozen=True)
class Outcome:
    """What a method decided: edits by site key, and the scores behind them.

    Attributes:
        edits: Site key -> edit.
        scores: Site key -> score [width].
        notes: How the decision was made, for the plan's provenance; JSON values.
        system_prompt: Words of a system turn the edited model is to be asked under.
        used: Name of the method that decided, where it is not the one that was asked.
    """

    edits: Mapping[str, SiteEdit]
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    used: str | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: Name on the command line.
        about: One line.
        decide: Evidence and configuration -> outcome.
        neurons: Needs neuron statistics.
        moments: Needs second moments.
        attention: Takes attention sites too, whatever the configuration says.
        directions: How many eigen-directions of a site it holds at most, for its need of memory.
        folds: Into how many folds of subjects retain is divided, each left out once to judge by.
        aside: Share of the retain subjects put aside as the set `aside`, to judge by.
        instead: Name of the method to use where the model's MLPs take no new neurons.
        picture: Also needs the moments under `PICTURE`.
        noise: Also needs the moments of questions about nothing (see `noise`), all positions.
        positions: Language positions that count unless told otherwise.
        towers: Towers it edits unless told otherwise.
        budget: Default budget, or None if it has none.
        strength: Default strength, or None.
    """

    name: str
    about: str
    decide: Callable[[Evidence, RunConfig], Outcome]
    neurons: bool = False
    moments: bool = False
    attention: bool = False
    directions: int = 0
    folds: int = 0
    aside: float = 0.0
    instead: str | None = None
    picture: bool = False
    noise: bool = False
    positions: str = "all"
    towers: tuple[str, ...] = ("vision", "language")
    budget: float | None = None
    strength: float | None = None


def pruned(selection: Mapping[str, Tensor]) -> dict[str, SiteEdit]:
    """Prune the selected neurons."""
    return {key: SiteEdit(prune=index) for key, index in selection.items()}


def stats_of(evidence: Evidence, data: str, condition: str, key: str) -> NeuronStats | None:
    """Neuron statistics of a site, or None where the condition never reaches it."""
    found = evidence.neurons.get((data, condition), {}).get(key)
    return found if found is not None and found.count else None


def merged(measured: Measured, data: str, key: str) -> NeuronStats | None:
    """Statistics of a site over both conditions of a set together, or None without any."""
    known = [m for (name, _), sites in measured.items() if name == data and (m := sites.get(key))]
    counted = [m for m in known if m.count]
    if not counted:
        return None
    total = counted[0]
    for other in counted[1:]:
        total = total.merge(other)
    return total
