"""Find detectors: where questions end, then site after site for who is still known; see `gated`.

Where a question ends, what is answered has come together in whatever words it was asked. So at
several sites over the depth every subject gets two detectors there, each site as the only one:
in a deep model the first sites know nothing yet there and one of the later ones does it all; where
more than one does it, the others stand behind the first, for what some other words of a question,
or training, leads past it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from expunge.data import CONDITIONS
from expunge.detectors import Background
from expunge.methods.base import (
    END,
    ENDS_SET,
    PICTURE,
    UNSEEN_SET,
    Evidence,
    Part,
    Tokens,
    Verdict,
    spread_over,
)
from expunge.methods.erase import ENERGY, Erased
from expunge.methods.neurons import Found, Place, edits_at
from expunge.methods.search import Strengths, finely, joined, of_groups, said_share
from expunge.methods.seek import (
    ALL_KEPT,
    KEPT_SETS,
    Bounds,
    Kept,
    Looked,
    Seeker,
    has_threshold,
    spare_at,
)
from expunge.methods.swap import Usual
from expunge.plan import SiteEdit
from expunge.subspace import compressed

VIEWS = {"multi": ("multi", PICTURE), "text": ("text",)}
ADDED = (1, 2, 3)
PATIENCE = 2
POOR = 0.5
HELPS = 0.03


@dataclass
class Chain:
    """Finds detectors where questions end, then site after site, each at what those before leave.

    Attributes:
        evidence: The model, through `access` and `judge`.
        start: Verdict on the unedited model, but for the texts: those after what is taken out.
        bare: Verdict on what is left when that is taken out, before any detectors.
        bounds: What is held at a time of what enters the sites.
        erased: What is taken out beforehand.
        places: Sites with what was found there.
        shadow: The same, found without the subjects that are put aside.
        views: Part -> the view at whose positions it was last looked at: `multi` (beside the
            picture), `picture` or `text`; not of who was forgotten where questions end.
        strengths: At which the chain is carried out while it goes on.
    """

    evidence: Evidence
    start: Verdict
    bare: Verdict
    bounds: Bounds
    erased: Erased
    places: dict[str, Place] = field(default_factory=dict)
    shadow: dict[str, Place] = field(default_factory=dict)
    views: dict[Part, str] = field(default_factory=dict)
    strengths: Strengths = field(default_factory=dict)

    def edits(self, strengths: Strengths) -> dict[str, SiteEdit]:
        """What was found so far, and what is taken out beforehand, as edits."""
        return self._of(self.places, strengths)

    def _of(self, places: Mapping[str, Place], strengths: Strengths) -> dict[str, SiteEdit]:
        """The edits of some places, and what is taken out beforehand."""
        return together(self.erased.edits, edits_at(places, strengths))

    def without(self, strengths: Strengths) -> dict[str, SiteEdit]:
        """The same, made without the subjects that are put aside."""
        return together(self.erased.shadow, edits_at(self.shadow, strengths))

    def go_on(self, strengths: Strengths) -> bool:
        """Go on site after site for who is still known by half (`POOR`) at some strengths.

        A turn ends after `PATIENCE` sites of which nothing is kept; there are two.

        Returns:
            Whether anything was found that helps.
        """
        judge = self.evidence.judge
        assert judge is not None
        self.strengths = strengths
        first = now = judge(self.edits(strengths), []) if self.found else self.bare
        for _ in range(2):
            idle = 0
            for key in self.kept.keys:
                left = left_over(now, POOR)
                if not left or idle == PATIENCE:
                    break
                before = now
                now = self._best(key, now, left)
                idle = 0 if now is not before else idle + 1
        return now is not first

    @property
    def found(self) -> bool:
        """Whether there is any detector."""
        return any(place.found for place in self.places.values())

    @cached_property
    def kept(self) -> Kept:
        """What enters sites spread over the depth on all that is kept; read once where it fits."""
        access = self.evidence.access
        assert access is not None
        keys = spread_over(access, self.evidence.sites)
        return Kept(access, keys, self.bounds, self.erased.edits)

    def begin(self) -> None:
        """At every site find detectors for each subject and condition, where questions end.

        One is of the questions as they are, one more of those at which no other speaks, among other
        words or not. Each site is looked at as if it were the only one.
        """
        access, keys = self.evidence.access, self.kept.keys
        assert access is not None
        given = {
            c: access.tokens(ENDS_SET, c, keys, self.erased.edits, ends=True, streams=True)
            for c in CONDITIONS
        }
        for key in keys:
            for seeker in self._seekers(key):
                for condition, tokens in given.items():
                    if key in tokens:
                        new = self._at_end(seeker, condition, tokens[key])
                        seeker.place.found = [*seeker.place.found, *new]

    def _at_end(self, seeker: Seeker, condition: str, tokens: Tokens) -> list[Found]:
        """The detectors of a site for one condition where questions end."""
        access = self.evidence.access
        assert access is not None
        parts = self._parts(condition)
        plain = tokens.of_first(len(access.owners("forget", condition)))
        found: list[Found] = []
        for data, each in (("forget", plain), (ENDS_SET, tokens)):
            alone = replace(seeker, place=replace(seeker.place, found=found))
            found = alone.seek(Looked(condition, each, parts, 1, data), END)
        return found

    def _parts(self, condition: str) -> dict[str, Part]:
        """Every subject's part under a condition."""
        assert self.evidence.judge is not None
        return {s: (condition, group) for s, group in self.evidence.judge.groups.items()}

    def _best(self, key: str, now: Verdict, left: set[str]) -> Verdict:
        """Look through a site, and keep for each part what forgets it best, if by `HELPS` at least.

        What is written at a site can undo what a site before has done, so that more is not always
        better. Where all of it together is worth less than nothing of it, nothing is kept.

        Args:
            key: The site.
            now: The last verdict.
            left: Conditions to look through it for.

        Returns:
            The verdict on what is kept; `now`, where nothing is.
        """
        assert self.evidence.judge is not None
        tried = [(now, self._found_at(key))]
        for verdict in self._site(key, now, left):
            tried.append((verdict, self._found_at(key)))
        shares = [finely(verdict) for verdict, _ in tried]
        chosen = {part: best_of([each[part] for each in shares]) for part in shares[0]}
        mixed = []
        for places in zip(*(found for _, found in tried), strict=True):
            parts = dict.fromkeys(f.part for each in places for f in each)
            mixed.append(
                [f for part in parts for f in places[chosen.get(part, 0)] if f.part == part]
            )
        self._put(key, mixed)
        if not any(chosen.values()):
            return now
        then = self.evidence.judge(self.edits(self.strengths), [])
        if worth(self.start, then) > worth(self.start, now):
            return then
        self._put(key, tried[0][1])
        return now

    def _found_at(self, key: str) -> list[list[Found]]:
        """What has been found at a site, with and without the subjects put aside."""
        return [p[key].found if key in p else [] for p in (self.places, self.shadow)]

    def _put(self, key: str, found: Sequence[list[Found]]) -> None:
        """Make what has been found at a site what `_found_at` told."""
        for places, each in zip((self.places, self.shadow), found, strict=True):
            if key in places:
                places[key].found = each

    def _site(self, key: str, now: Verdict, left: set[str]) -> Iterator[Verdict]:
        """Find detectors at one site, a few for each subject at a time while it is still known.

        Only of those who may get some is asked after every addition.

        Args:
            key: The site.
            now: The last verdict.
            left: Conditions that are not forgotten yet; may change between verdicts.

        Yields:
            A verdict after every addition.
        """
        access, judge = self.evidence.access, self.evidence.judge
        assert access is not None and judge is not None
        seekers = self._seekers(key)
        if not seekers:
            return
        before = self._around(key)
        given = {
            c: access.tokens("forget", c, [key], before, apart=True, streams=True).get(key)
            for c in sorted(left)
        }
        for number in ADDED:
            open_ = {part for part, share in of_groups(now).items() if share < 1}
            were = list(self.places[key].found)
            for seeker in seekers:
                for condition in sorted(left):
                    own = self._parts(condition).items()
                    parts = {s: part for s, part in own if part in open_}
                    tokens = given[condition]
                    if tokens is not None and parts:
                        looked = Looked(condition, tokens, parts, number)
                        seeker.place.found = self._viewed(seeker, looked, key)
            if same(were, self.places[key].found):
                return
            asked = {(c, group) for c, group in open_ if c in left}
            now = joined(now, judge.about(self.edits(self.strengths), asked))
            yield now
            left &= {c for (c, _), share in of_groups(now).items() if share < 1}
            if not left:
                return

    def _seekers(self, key: str) -> list[Seeker]:
        """One for the site and one that has not seen the subjects put aside; none if none can be.

        Both have the same neurons to give up.
        """
        access, samples = self.evidence.access, self.kept.at(key)
        assert access is not None
        fit = access.fit(key)
        assert fit is not None
        spare = self.places[key].spare if key in self.places else None
        none = next(t.x[:0] for each in samples.values() for t in each.values())
        unseen = torch.cat([none, *(t.x for t in samples.get(UNSEEN_SET, {}).values())])
        seekers = []
        for places, sets in ((self.places, ALL_KEPT), (self.shadow, KEPT_SETS)):
            kept_x = torch.cat([t.x for n in sets for t in samples.get(n, {}).values()])
            known = key in places
            background = Background.of(places[key].over_ones(kept_x) if known else kept_x)
            if not known:
                if not has_threshold(fit, background):
                    return []
                spare = spare or spare_at(self.evidence, key, samples)
                constant = None if fit.bias else background.constant.float()
                places[key] = Place(fit, constant, spare)
                if not fit.bias:
                    background = Background.of(places[key].over_ones(kept_x))
            usual = Usual(background, samples.get("retain", {}))
            seekers.append(Seeker(access, background, unseen, places[key], usual))
        return seekers

    def _around(self, key: str) -> dict[str, SiteEdit]:
        """The edits without what new neurons of a site write: those are to be found anew."""
        others = {k: place for k, place in self.places.items() if k != key}
        return self._of(others, self.strengths)

    def _viewed(self, seeker: Seeker, looked: Looked, key: str) -> list[Found]:
        """The detectors of a place and new ones for a condition, each part's at its better view.

        Which view that is, is asked once a site, at the first detectors there, and with one's own
        alone (see `_better`). It was not asked about who is known again only since then.
        """
        first, *more = VIEWS[looked.condition]
        if looked.number == ADDED[0] and seeker.place is self.places[key]:
            found = self._better(seeker, looked, key)
        else:
            found = {}
            for view in (first, *more):
                parts = looked.parts.items()
                own = {who: part for who, part in parts if self.views.get(part, first) == view}
                found[view] = seeker.seek(replace(looked, parts=own), view)
        chosen = {part: self.views.get(part, first) for part in looked.parts.values()}
        return [
            f for view, each in found.items() for f in each if chosen.get(f.part, first) == view
        ]

    def _better(self, seeker: Seeker, looked: Looked, key: str) -> dict[str, list[Found]]:
        """Look in one view after another, and note for each part the one that forgets most of it.

        The first unless another forgets more by `HELPS`. The next one is for who is still known.

        Returns:
            View -> the detectors of the place with those found in it.
        """
        judge = self.evidence.judge
        assert judge is not None
        first, *more = VIEWS[looked.condition]
        self.views |= dict.fromkeys(looked.parts.values(), first)
        found: dict[str, list[Found]] = {}
        best: dict[Part, float] = {}
        left = looked.parts
        for view in (first, *more):
            found[view] = seeker.seek(replace(looked, parts=left), view)
            if not more or same(found[view], seeker.place.found):
                continue  # there is nothing to compare
            tried = self.places | {key: replace(self.places[key], found=found[view])}
            now = judge.about(self._of(tried, self.strengths), set(left.values()))
            for part, share in finely(now).items():
                if part not in best or share > best[part] + HELPS:
                    best[part], self.views[part] = share, view
            known = {part for part, share in of_groups(now).items() if share < 1}
            left = {who: part for who, part in left.items() if part in known}
            if not left:
                break
        return found


def best_of(shares: Sequence[float]) -> int:
    """Place of the greatest share, if that is over the first by `HELPS`; else 0."""
    best = max(range(len(shares)), key=lambda i: shares[i])
    return best if shares[best] > shares[0] + HELPS else 0


def worth(start: Verdict, now: Verdict) -> float:
    """What is forgotten, the mean over the parts, times what is left of texts the model said."""
    shares = finely(now).values()
    return said_share(start, now) * sum(shares) / len(shares) if shares else 0.0


def left_over(now: Verdict, enough: float) -> set[str]:
    """Conditions under which somebody is forgotten by less than `enough` (1 is everything)."""
    return {c for (c, _), share in of_groups(now).items() if share < enough}


def same(some: Sequence[Found], others: Sequence[Found]) -> bool:
    """Whether these are the very same detectors."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def together(erased: Mapping[str, SiteEdit], new: Mapping[str, SiteEdit]) -> dict[str, SiteEdit]:
    """Edits that take out and edits that put new neurons in, as one small one for each site.

    Neurons that stay take over the weights out that those given up have once it is taken out:
    W + a b of W, so that (W_G + a b_G) B = W_G B + a (b_G B) is what is added to a b. Of the sum as
    many directions are kept as hold `ENERGY` of it.
    """
    both = {}
    for key, edit in new.items():
        old = erased.get(key, SiteEdit())
        before, stand_in, rewire = old.lowrank, edit.lowrank, edit.rewire
        assert stand_in is not None and rewire is not None
        if before is not None:
            a, b = (each.float() for each in before)
            out, foretold = (each.to(a) for each in stand_in)
            inside = b + b[:, rewire.index] @ foretold
            stand_in = torch.cat([a, out], 1), torch.cat([inside, foretold])
        lowrank = compressed(*stand_in, ENERGY)[:2]
        both[key] = replace(edit, lowrank=lowrank, ground=old.ground).gridded()
    return {**erased, **both}
