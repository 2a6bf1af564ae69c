"""The default method: neurons nobody needs become detectors of the forget set, and take it out.

What can be taken out for nothing is taken out first (see `erase`). The rest goes otherwise, since a
linear edit takes from everybody in proportion, but a neuron has a threshold. Site after site, from
the first: what enters the MLP at the forget questions (the sites before are edited already) is
compared with what enters it at retain questions and at questions about nothing in particular. For
each subject and condition a few detectors are found (see `detectors`): silent on all that is kept,
speaking on a group of the subject's positions. Each becomes one neuron, in the place of one that
hardly does anything. Together a subject's neurons write what the layer would pass on for nobody in
particular in the place of what it does for the subject (see `swap`). When the model answers about a
subject like one that never knew (see `search.of_groups`), it gets no more detectors.

How loud new neurons are is one strength for each condition and subject, found by search. What it
costs is asked of retain subjects that were put aside, under detectors found without them; those of
the plan are found with them. Where not everything is forgotten at strength 1 or inside the limit on
what is lost, more detectors are looked for at the strengths reached, and the search is done again,
now up to strengths over 1. Forward passes are all it takes.

The forget questions are those given and more of the kind that retain subjects are asked, answered
by the model itself (see `augment`): one or two questions do not show what it does at the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from expunge.config import RunConfig
from expunge.detectors import Background
from expunge.errors import InputError
from expunge.methods import filter_search
from expunge.methods.base import ASKED_SET, PICTURE, Evidence, Fit, Method, Outcome, Verdict
from expunge.methods.erase import Erased, erase
from expunge.methods.search import (
    Pace,
    Step,
    Strengths,
    by_condition,
    further,
    of_groups,
    search,
    told,
    unknown,
)
from expunge.methods.seek import (
    ALL_KEPT,
    KEPT_SETS,
    Bounds,
    Found,
    Kept,
    Looked,
    Place,
    Seeker,
    edits_at,
    place_at,
)
from expunge.methods.swap import Usual
from expunge.plan import SiteEdit

VIEWS = {"multi": ("multi", PICTURE), "text": ("text",)}
ADDED = (1, 2, 3)
LEAPS = 8
FIRST = 4
POOR = 0.5
CLEARLY = 0.1
FULL = 1.0
PACE = Pace(
    0.25,
    rises=3,
    halvings=0,
    done=partial(of_groups, guessing=True),
    behind=1.0,
)
LOUDER = replace(PACE, first=0.5, rises=4)


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Find detectors until everything is forgotten, then search the strengths unless given."""
    judge = evidence.judge
    assert judge is not None
    start = judge({}, [{}])
    assert evidence.weight is not None
    hidden = max(evidence.weight(s.key).shape[0] for s in evidence.sites)
    erased = erase(evidence)
    chain = Chain(evidence, start, Bounds.within(config.memory, hidden), erased)
    full: Strengths = dict.fromkeys(of_groups(start), FULL)
    chain.run(full)
    notes: dict[str, Any] = {
        "erased": erased.notes,
        "views": chain.views,
        "asked": asked(evidence),
        "held": {"positions": chain.bounds.positions, "sites": chain.bounds.sites},
    }
    if not any(place.found for place in chain.places.values()):
        if min(unknown(judge(erased.edits, [])).values(), default=0.0) >= 1:
            return Outcome(erased.edits, {}, notes)
        return without_detectors(evidence, config)
    if config.strength is not None:
        given: Strengths = dict.fromkeys(full, config.strength)
        chain.run(given)
        return Outcome(chain.edits(given), {}, notes)
    first = searched(chain, config.keep, PACE)
    best = first
    if first.reached is not None and not first.reached.forgotten:
        chain.run(first.reached.strengths)
        best = max(first, searched(chain, config.keep, LOUDER), key=lambda s: s.order)
    return Outcome(best.edits, {}, notes | {"search": best.told})


def without_detectors(evidence: Evidence, config: RunConfig) -> Outcome:
    """The filter alone, where no neuron can be made that is silent on what is kept.

    An MLP without biases needs an input that is much the same everywhere for a threshold; not
    every model has one.
    """
    if not evidence.moments:
        raise InputError(
            "no neuron could be made to tell the forget set from what is kept, and second moments"
            " do not fit the memory; give more with --memory"
        )
    return replace(filter_search.decide(evidence, config), used=filter_search.METHOD.name)


@dataclass(frozen=True)
class Searched:
    """What a search came to.

    Attributes:
        edits: The edits at the strengths chosen.
        reached: The candidate chosen, before it was made stronger; None if all went over the limit.
        told: The search, as `search.told` tells it.
    """

    edits: Mapping[str, SiteEdit]
    reached: Step | None
    told: Mapping[str, Any]

    @property
    def order(self) -> float:
        """How much is forgotten under the condition that is worse."""
        return self.reached.least if self.reached else -1.0


def searched(chain: Chain, keep: float, pace: Pace) -> Searched:
    """Search the strengths of what a chain has found."""
    judge = chain.evidence.judge
    assert judge is not None
    steps: list[Step] = []

    def tried(now: Strengths) -> Verdict:
        return judge(chain.edits(now), [chain.without(now)])

    chosen = search(tried, chain.start, keep, steps, pace)
    reached = next((s for s in steps if s.strengths is chosen), None)
    if reached is not None:
        chosen = further(tried, chain.start, keep, steps, pace, reached)
    about = told(chain.start, steps, chosen, keep)
    more = " and ".join(f"{n} under {c}" for c, n in asked(chain.evidence).items() if n)
    if more:
        about["explanation"] += (
            f" More questions were put to the forget subjects in the words of retain questions"
            f" ({more}); what the model said itself stood for the answer."
        )
    return Searched(chain.edits(chosen), reached, about)


def asked(evidence: Evidence) -> dict[str, int]:
    """By condition, how many questions the forget set lacked and the model answered itself."""
    assert evidence.access is not None
    return {c: len(evidence.access.owners(ASKED_SET, c)) for c in VIEWS}


@dataclass
class Chain:
    """Finds detectors site after site, each at what the sites before leave.

    Attributes:
        evidence: The model, through `access` and `judge`.
        start: Verdict on the unedited model.
        bounds: What is held at a time of what enters the sites.
        erased: What is taken out beforehand.
        places: Sites with what was found there.
        shadow: The same, found without the subjects that are put aside.
        views: Condition -> the view whose positions are looked at: `multi` (beside the picture),
            `picture` or `text`.
        settled: Conditions whose view stays what it is.
        strengths: At which the chain is carried out while it goes on.
        kept: What enters the sites on all that is kept; read once for all runs where it fits.
    """

    evidence: Evidence
    start: Verdict
    bounds: Bounds
    erased: Erased
    places: dict[str, Place] = field(default_factory=dict)
    shadow: dict[str, Place] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    strengths: Strengths = field(default_factory=dict)
    kept: Kept | None = None

    def edits(self, strengths: Strengths) -> dict[str, SiteEdit]:
        """What was found so far, and what is taken out beforehand, as edits."""
        return self._of(self.places, strengths)

    def _of(self, places: Mapping[str, Place], strengths: Strengths) -> dict[str, SiteEdit]:
        """The edits of some places, and what is taken out beforehand."""
        return _together(self.erased.edits, edits_at(places, strengths))

    def without(self, strengths: Strengths) -> dict[str, SiteEdit]:
        """The same, made without the subjects that are put aside."""
        return _together(self.erased.shadow, edits_at(self.shadow, strengths))

    def run(self, strengths: Strengths) -> None:
        """Go on until at these strengths everything is forgotten, or no site is left.

        A second turn looks at the other view of pictures. What each place is for: see `left_over`.
        """
        access, judge = self.evidence.access, self.evidence.judge
        assert access is not None and judge is not None
        fits = {s.key: fit for s in self.evidence.sites if (fit := access.fit(s.key)) is not None}
        if self.kept is None:
            self.kept = Kept(access, list(leaps(list(fits))), self.bounds, self.erased.edits)
        kept = self.kept
        self.strengths = strengths
        now = judge(self.edits(strengths), [])
        for turn in range(2):
            for place, key in enumerate(kept.keys):
                left = left_over(now, early=place < FIRST, again=turn > 0)
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
        before = self._around(key)
        given = {
            c: access.tokens("forget", c, [key], before, apart=True, streams=True).get(key)
            for c in sorted(left)
        }
        samples = kept.at(key)
        seekers = []
        for places, sets in ((self.places, ALL_KEPT), (self.shadow, KEPT_SETS)):
            kept_x = [t.x for n in sets for t in samples.get(n, {}).values()]
            background = Background.of(torch.cat(kept_x))
            place = places.get(key) or place_at(self.evidence, key, fit, background, samples)
            if place is None:
                return
            places[key] = place
            usual = Usual(background, samples.get("retain", {}))
            seekers.append(Seeker(access, background, place, usual))
        for number in ADDED:
            open_ = {part for part, share in of_groups(now).items() if share < 1}
            were = list(self.places[key].found)
            for seeker in seekers:
                for condition in sorted(left):
                    own = {s: (condition, group) for s, group in judge.groups.items()}
                    parts = {s: part for s, part in own.items() if part in open_}
                    tokens = given[condition]
                    if tokens is not None and parts:
                        looked = Looked(condition, tokens, parts, number)
                        seeker.place.found = self._viewed(seeker, looked, key, turn)
            if same(were, self.places[key].found):
                return
            now = judge(self.edits(self.strengths), [])
            yield now
            left &= {c for (c, _), share in of_groups(now).items() if share < 1}
            if not left:
                return

    def _around(self, key: str) -> dict[str, SiteEdit]:
        """The edits without what new neurons of a site write: those are to be found anew."""
        others = {k: place for k, place in self.places.items() if k != key}
        return self._of(others, self.strengths)

    def _viewed(self, seeker: Seeker, looked: Looked, key: str, turn: int) -> list[Found]:
        """The detectors of a place and new ones for a condition, at positions of the better view.

        That is the first unless another clearly forgets more, by `CLEARLY`. Which one it is, is
        asked with one's own detectors alone, until such a difference is seen.
        """
        condition, choices = looked.condition, VIEWS[looked.condition]
        asks = seeker.place is self.places[key] and not turn and len(choices) > 1
        if asks and condition not in self.settled:
            found = {view: seeker.seek(looked, view) for view in choices}
            forgets = {view: self._forgets(key, each, looked) for view, each in found.items()}
            best = max(choices, key=lambda v: forgets[v])
            clear = forgets[best] > CLEARLY + min(forgets.values())
            view = self.views[condition] = best if clear else choices[0]
            if clear:
                self.settled.add(condition)
            return found[view]
        view = self.views.setdefault(condition, choices[0])
        view = view if not turn else next((v for v in choices if v != view), view)
        return seeker.seek(looked, view)

    def _forgets(self, key: str, found: list[Found], looked: Looked) -> float:
        """How much of a condition is forgotten with these detectors: see `unknown`."""
        judge = self.evidence.judge
        assert judge is not None
        tried = self.places | {key: replace(self.places[key], found=found)}
        edits = self._of(tried, self.strengths)
        return unknown(judge(edits, [], [looked.condition]))[looked.condition]


def left_over(now: Verdict, *, early: bool, again: bool) -> set[str]:
    """Conditions that a site is looked through for.

    Reading what enters a site costs much, and strengths do what little is left. So the first
    `FIRST` sites are for anybody who is not forgotten, the others for what is known by half
    (`POOR`) on average; a second turn is for pictures alone, and for who is known by half.
    """
    shares = of_groups(now)
    if early:
        enough = POOR if again else 1.0
        left = {c for (c, _), share in shares.items() if share < enough}
    else:
        left = {c for c, share in by_condition(shares).items() if share < POOR}
    return left & {"multi"} if again else left


def same(some: Sequence[Found], others: Sequence[Found]) -> bool:
    """Whether these are the very same detectors."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _together(erased: Mapping[str, SiteEdit], new: Mapping[str, SiteEdit]) -> dict[str, SiteEdit]:
    """Edits that take out and edits that put new neurons in, as one for each site."""
    rewired = {k: replace(erased.get(k, SiteEdit()), rewire=e.rewire) for k, e in new.items()}
    return {**erased, **rewired}


def leaps(keys: Sequence[str]) -> Iterator[str]:
    """Sites in the order they are tried: a few spread over the depth first, from the first on."""
    step = max(1, len(keys) // LEAPS)
    for offset in sorted(range(step), key=lambda o: (o * 2 % step, o)):
        yield from keys[offset::step]


METHOD = Method(
    name="auto",
    about="spare neurons become detectors of the forget set, strengths found by search (default)",
    decide=decide,
    moments=True,
    directions=filter_search.NUMBER,
    aside=1 / 6,
    picture=True,
    instead=filter_search.METHOD.name,
    positions="no_image",
    towers=("language",),
)
