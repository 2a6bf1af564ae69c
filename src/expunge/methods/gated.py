"""The default method: neurons nobody needs become detectors of the forget set, and take it out.

A linear edit takes from everybody in proportion; a neuron has a threshold. Site after site, from
the first: what enters the MLP at the forget questions (the sites before are edited already) is
compared with what enters it at retain questions and at questions about nothing in particular. For
each subject and condition a few detectors are found (see `detectors`): silent on all that is kept,
speaking on a group of the subject's positions. Each becomes one neuron, in the place of one that
hardly does anything, and writes the reverse of what the MLP says at those positions, so that what
the layer knew of the subject goes no further. When the model answers about a subject like one that
never knew (see `search.unknown`), it gets no more detectors.

How far above the kept inputs a threshold lies and how loud a new neuron is are one strength for
each condition, found by search. What it costs is asked of retain subjects that were put aside,
under detectors found without them; those of the plan are found with them. Where the limit on what
is lost comes before everything is forgotten, more detectors are looked for at the strengths
reached, and the search is done again. Forward passes are all it takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.detectors import Background, detector
from expunge.errors import InputError
from expunge.methods.base import (
    ASIDE,
    NOISE_SET,
    PICTURE,
    Access,
    Evidence,
    Fit,
    Method,
    Outcome,
    Tokens,
    Verdict,
)
from expunge.methods.search import Pace, Step, Strengths, search, told, unknown
from expunge.plan import Rewire, SiteEdit

KEPT_SETS = ("retain", NOISE_SET)
ALL_KEPT = (*KEPT_SETS, ASIDE)
VIEWS = {"multi": ("multi", PICTURE), "text": ("text",)}
ADDED = (1, 2, 3)
COVER = 0.25
FEWEST = 3
HIGHEST = 0.9
SAMPLE = 16384
HELD_SITES = 4
LEAPS = 8
SPARE = 32
LARGEST_SHARE = 8
SHARP = 256.0
GAIN = 8.0
SLACK = 0.15
STEADY = 0.5
POOR = 0.5
PACE = Pace(first=0.25, rises=5, halvings=2, done=unknown)


@dataclass(frozen=True)
class Found:
    """A detector: level(x) = row x (over constant x, where there is no bias).

    Attributes:
        condition: The condition it serves.
        row: a, float32 [in]; its level is 1 on the mean of its group.
        kept: Greatest level on what is kept.
        take: What the MLP puts out on its group, float32 [out].
    """

    condition: str
    row: Tensor
    kept: float
    take: Tensor


@dataclass
class Place:
    """A site with what was found there.

    Attributes:
        fit: How new neurons can be put in.
        constant: Row that stands for 1 where there is no bias, float32 [in], or None.
        pool: Neurons that can be given up, least used first, int64.
        size: Typical (median) norm of a neuron's weights out.
        found: Detectors.
    """

    fit: Fit
    constant: Tensor | None
    pool: Tensor
    size: float
    found: list[Found] = field(default_factory=list)


@dataclass
class Kept:
    """What enters the sites on all that is kept: samples of a few sites at a time."""

    access: Access
    keys: Sequence[str]
    held: dict[str, dict[str, list[Tokens]]] = field(default_factory=dict)

    def at(self, key: str) -> dict[str, list[Tokens]]:
        """By set, the samples of one site."""
        if key not in self.held:
            begin = self.keys.index(key)
            self._read(self.keys[begin : begin + HELD_SITES])
        return self.held[key]

    def _read(self, keys: Sequence[str]) -> None:
        self.held = {key: {} for key in keys}
        for name in ALL_KEPT:
            for condition in CONDITIONS:
                read = self.access.tokens(name, condition, keys, limit=SAMPLE)
                for key, tokens in read.items():
                    self.held[key].setdefault(name, []).append(tokens)


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Find detectors until everything is forgotten, then search the strengths unless given."""
    judge = evidence.judge
    assert judge is not None
    start = judge({}, [{}])
    chain = Chain(evidence, start)
    full: Strengths = dict.fromkeys(start.nll, 1.0)
    chain.run(full)
    if not any(place.found for place in chain.places.values()):
        raise InputError(
            "no neuron could be made to tell the forget set from what is kept; take --method"
            " filter-search, or check that forget and retain are not about the same subjects"
        )
    notes: dict[str, Any] = {"views": chain.views}
    if config.strength is not None:
        return Outcome(edits_at(chain.places, dict.fromkeys(full, config.strength)), {}, notes)
    first = searched(chain, config.keep)
    best = first
    if first.reached is not None and not first.reached.forgotten:
        chain.run(first.reached.strengths)
        best = max(first, searched(chain, config.keep), key=lambda s: s.order)
    return Outcome(best.edits, {}, notes | {"search": best.told})


@dataclass(frozen=True)
class Searched:
    """What a search came to.

    Attributes:
        edits: The edits at the strengths chosen.
        reached: The candidate chosen, or None if all went over the limit.
        told: The search, as `search.told` tells it.
    """

    edits: Mapping[str, SiteEdit]
    reached: Step | None
    told: Mapping[str, Any]

    @property
    def order(self) -> float:
        """How much is forgotten under the condition that is worse."""
        return min(self.reached.done.values()) if self.reached else -1.0


def searched(chain: Chain, keep: float) -> Searched:
    """Search the strengths of what a chain has found."""
    judge = chain.evidence.judge
    assert judge is not None
    steps: list[Step] = []

    def tried(now: Strengths) -> Verdict:
        return judge(edits_at(chain.places, now), [edits_at(chain.shadow, now)])

    chosen = search(tried, chain.start, keep, steps, PACE)
    reached = next((s for s in steps if s.strengths is chosen), None)
    about = told(chain.start, steps, chosen, keep)
    return Searched(edits_at(chain.places, chosen), reached, about)


@dataclass
class Chain:
    """Finds detectors site after site, each at what the sites before leave.

    Attributes:
        evidence: The model, through `access` and `judge`.
        start: Verdict on the unedited model.
        places: Sites with what was found there.
        shadow: The same, found without the subjects that are put aside.
        views: Condition -> the view whose positions are looked at: `multi` (beside the picture),
            `picture` or `text`.
        strengths: At which the chain is carried out while it goes on.
    """

    evidence: Evidence
    start: Verdict
    places: dict[str, Place] = field(default_factory=dict)
    shadow: dict[str, Place] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    strengths: Strengths = field(default_factory=dict)

    def edits(self) -> dict[str, SiteEdit]:
        """What was found so far, as edits."""
        return edits_at(self.places, self.strengths)

    def run(self, strengths: Strengths) -> None:
        """Go on until at these strengths everything is forgotten, or no site is left.

        A second turn looks at the other view of pictures.
        """
        access, judge = self.evidence.access, self.evidence.judge
        assert access is not None and judge is not None
        fits = {s.key: fit for s in self.evidence.sites if (fit := access.fit(s.key)) is not None}
        kept = Kept(access, list(leaps(list(fits))))
        self.strengths = strengths
        now = judge(self.edits(), [])
        for turn, enough in enumerate((1.0, POOR)):
            for key in kept.keys:
                left = {c for c, share in unknown(now).items() if share < enough}
                left &= {"multi"} if turn else left
                if not left:
                    break
                now = [now, *self._site(kept, key, fits[key], now, left, turn)][-1]

    def _site(
        self, kept: Kept, key: str, fit: Fit, now: Verdict, left: set[str], turn: int
    ) -> Iterator[Verdict]:
        """Find detectors at one site, a few for each subject at a time while it is still known.

        Args:
            kept: What enters the sites on all that is kept.
            key: The site.
            fit: How new neurons can be put in there.
            now: The last verdict.
            left: Conditions that are not forgotten yet; may change between verdicts.
            turn: 1 to look at the other view of pictures.

        Yields:
            A verdict after every addition.
        """
        access, judge = self.evidence.access, self.evidence.judge
        assert access is not None and judge is not None
        before = self.edits()
        given = {
            c: access.tokens("forget", c, [key], before, apart=True).get(key) for c in sorted(left)
        }
        samples = kept.at(key)
        seekers = []
        for places, sets in ((self.places, ALL_KEPT), (self.shadow, KEPT_SETS)):
            background = Background.of(torch.cat([t.x for n in sets for t in samples.get(n, [])]))
            place = places.get(key) or _place(self.evidence, key, fit, background, samples)
            if place is None:
                return
            places[key] = place
            seekers.append(Seeker(access, background, place))
        for number in ADDED:
            known = {
                c: {s for s, v in now.apart.items() if unknown(v).get(c, 1.0) < 1} for c in left
            }
            before_count = len(self.places[key].found)
            for seeker in seekers:
                for condition, subjects in sorted(known.items()):
                    tokens = given[condition]
                    if tokens is not None and subjects:
                        looked = Looked(condition, tokens, subjects, number)
                        seeker.place.found += self._viewed(seeker, looked, turn)
            if len(self.places[key].found) == before_count:
                return
            now = judge(self.edits(), [])
            yield now
            left &= {c for c, share in unknown(now).items() if share < 1}
            if not left:
                return

    def _viewed(self, seeker: Seeker, looked: Looked, turn: int) -> list[Found]:
        """Detectors for a condition; the first site decides which view of it answers better."""
        choices = VIEWS[looked.condition]
        if looked.condition not in self.views:
            found = {view: seeker.seek(looked, view) for view in choices}
            self.views[looked.condition] = max(choices, key=lambda v: found[v][1])
            return found[self.views[looked.condition]][0]
        view = self.views[looked.condition]
        view = view if not turn else next((v for v in choices if v != view), view)
        return seeker.seek(looked, view)[0]


@dataclass(frozen=True)
class Looked:
    """What is looked through.

    Attributes:
        condition: The condition.
        tokens: What enters the site at the forget questions under it.
        subjects: The subjects that are still known.
        number: How many detectors each gets at most.
    """

    condition: str
    tokens: Tokens
    subjects: set[str]
    number: int


def leaps(keys: Sequence[str]) -> Iterator[str]:
    """Sites in the order they are tried: a few spread over the depth first, from the first on."""
    step = max(1, len(keys) // LEAPS)
    for offset in sorted(range(step), key=lambda o: (o * 2 % step, o)):
        yield from keys[offset::step]


def _place(
    evidence: Evidence,
    key: str,
    fit: Fit,
    background: Background,
    samples: Mapping[str, list[Tokens]],
) -> Place | None:
    """What can be done at a site; None where a threshold cannot be made."""
    assert evidence.weight is not None
    if not fit.bias and background.steady < STEADY:
        return None
    used = torch.stack([t.used for each in samples.values() for t in each]).amax(0)
    weight = evidence.weight(key)
    loss = used.to(weight.device) * weight.float().norm(dim=0)
    pool = loss.argsort(stable=True)[: max(1, len(loss) // LARGEST_SHARE)].cpu()
    constant = None if fit.bias else background.constant.float()
    return Place(fit, constant, pool, float(weight.float().norm(dim=0).median()))


@dataclass
class Seeker:
    """Looks for detectors at one site."""

    access: Access
    background: Background
    place: Place

    def seek(self, looked: Looked, view: str) -> tuple[list[Found], float]:
        """Detectors of the subjects, and the mean share of their questions that they answer."""
        tokens = looked.tokens
        assert tokens.question is not None and tokens.answer is not None
        owners = self.access.owners("forget", looked.condition)
        names = sorted(set(owners))
        own = torch.tensor([names.index(o) for o in owners])[tokens.question.cpu()]
        inside = ~tokens.answer
        if view != "text":
            inside = inside & (tokens.picture if view == PICTURE else ~tokens.picture)
        for known in self.place.found:
            inside = inside & (self._level(tokens.x, known.row) <= known.kept)
        found, covered = [], 0.0
        for name in sorted(looked.subjects):
            mine = torch.nonzero(inside.cpu() & (own == names.index(name)))[:, 0]
            each, share = self._subject(looked, mine)
            found += each
            covered += share / len(looked.subjects)
        return found, covered

    def _subject(self, looked: Looked, mine: Tensor) -> tuple[list[Found], float]:
        """Detectors of one subject at its positions `mine`, and the share of questions answered."""
        tokens = looked.tokens
        assert tokens.question is not None and tokens.out is not None
        total = tokens.question[mine].unique().numel()
        found: list[Found] = []
        answered: set[int] = set()
        while len(found) < looked.number and len(mine) >= FEWEST:
            x = tokens.x[mine]
            row, kept, level = self._detector(x)
            fires = level > kept
            questions = tokens.question[mine][fires].unique().tolist()
            if kept > HIGHEST or int(fires.sum()) < FEWEST or len(questions) < COVER * total:
                break
            weight = (level - kept).clamp_min(0)
            take = (weight[:, None] * tokens.out[mine]).sum(0) / weight.sum()
            mean = float(level[fires].mean())
            found.append(Found(looked.condition, row / mean, kept / mean, take))
            answered |= set(questions)
            mine = mine[~fires.cpu()]
        return found, len(answered) / max(total, 1)

    def _detector(self, x: Tensor) -> tuple[Tensor, float, Tensor]:
        """Row, its greatest level on what is kept, and the levels of x."""
        a = detector(self.background, self.background.whiten(x))
        row = self.background.row(a).float()
        if self.place.constant is None:
            kept = self.background.kept @ a
        else:
            kept = self._level(self.background.plain(), row)
        return row, float(kept.max()), self._level(x, row)

    def _level(self, x: Tensor, row: Tensor) -> Tensor:
        """How clearly inputs answer a row; without a bias, against the row that stands for one."""
        if self.place.constant is None:
            return x @ row
        return (x @ row) / (x @ self.place.constant).clamp_min(STEADY / 10)


def edits_at(places: Mapping[str, Place], strengths: Strengths) -> dict[str, SiteEdit]:
    """The edits at given strengths (by condition; 0 leaves it out)."""
    edits = {}
    for key, place in places.items():
        new = [f for f in place.found if strengths.get(f.condition, 0.0) > 0]
        if new:
            new = new[: len(place.pool)]
            edits[key] = SiteEdit(rewire=_rewire(place, new, strengths))
    return edits


def _rewire(place: Place, new: Sequence[Found], strengths: Strengths) -> Rewire:
    """New neurons for detectors, in the places of the least used ones."""
    edges = torch.tensor([threshold(f.kept, strengths[f.condition]) for f in new])
    gains = torch.tensor([GAIN * strengths[f.condition] for f in new])
    take = torch.stack([f.take for f in new], 1).cpu()
    one = torch.zeros(len(new[0].row) + 1) if place.constant is None else place.constant.cpu()
    one = torch.cat([one, torch.zeros(1)]) if len(one) == len(new[0].row) else one
    one[-1] = float(place.constant is None)
    rows = torch.stack([torch.cat([f.row.cpu(), torch.zeros(1)]) for f in new])
    wide = (1 - edges).clamp_min(1 - HIGHEST)
    # as loud as makes the weights out of the new neuron about as large as those of the others
    amount = (gains * take.norm(dim=0) / place.size).clamp_min(1e-6)
    sharp = torch.full_like(amount, SHARP) if place.fit.gated else amount.clamp_min(SHARP)
    gate = (rows - edges[:, None] * one) * (sharp / wide)[:, None]
    up = (amount / sharp)[:, None] * one if place.fit.gated else gate[:0]
    down = -take * (gains / (amount if place.fit.gated else sharp))
    pool = place.pool[: 2 * len(new) + SPARE]
    order = pool[: len(new)].argsort()
    return Rewire(
        pool[: len(new)][order],
        gate[order],
        up[order] if len(up) else up,
        down[:, order],
        pool.sort().values,
    )


def threshold(kept: float, strength: float) -> float:
    """Where a detector starts: above the greatest level on what is kept, the more the weaker."""
    slack = -SLACK * math.log2(strength)
    return kept + slack * (1 - kept) if slack >= 0 else kept * max(0.0, 1 + slack)


METHOD = Method(
    name="auto",
    about="spare neurons become detectors of the forget set, strengths found by search (default)",
    decide=decide,
    aside=1 / 6,
    instead="filter-search",
    positions="no_image",
    towers=("language",),
)
