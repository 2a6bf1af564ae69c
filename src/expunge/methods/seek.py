"""Detectors at one site: looking for them; see `gated`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from expunge.config import bytes_of
from expunge.data import CONDITIONS
from expunge.detectors import CLEAR, Background, detectors
from expunge.errors import InputError
from expunge.methods.base import (
    ASIDE,
    END,
    NOISE_SET,
    PICTURE,
    PLAIN_SET,
    UNSEEN_SET,
    Access,
    Evidence,
    Fit,
    Part,
    Tokens,
)
from expunge.methods.neurons import HIGHEST, STEADY, Found, Place, floored
from expunge.methods.spare import Spare, moment_of
from expunge.methods.swap import Usual, thinned, written
from expunge.passes import shown
from expunge.plan import SiteEdit

KEPT_SETS = ("retain", NOISE_SET, PLAIN_SET)
ALL_KEPT = (*KEPT_SETS, ASIDE)
COVER = 0.05
AT_ONCE = 16
FEWEST = 3
SAMPLE = 16384
AT_A_TIME = 8
COPIES = 3
LEAST_SAMPLE = 512
SLACK = 0.03


@dataclass(frozen=True)
class Bounds:
    """What is held of the inputs of what is kept.

    Attributes:
        positions: Positions of each set and condition at most.
        sites: Sites at a time at most.
    """

    positions: int = SAMPLE
    sites: int = AT_A_TIME

    @classmethod
    def within(cls, memory: str | None, width: int, free: int) -> Bounds:
        """Bounds for inputs of a width, of which `COPIES` more are held while one is worked on.

        Args:
            memory: The limit that was given; without one half of what is free is theirs, and what
                is read does not depend on it, only how often.
            width: Of the inputs.
            free: Bytes that are free.

        Raises:
            InputError: The limit holds too little of one site.
        """
        position = 4 * width * (len(ALL_KEPT) + 2) * len(CONDITIONS)  # retain has streams too
        if memory is None:
            return cls(SAMPLE, max(1, free // 2 // (SAMPLE * position) - COPIES))
        most = bytes_of(memory) // position
        positions = min(SAMPLE, most // (1 + COPIES))
        if positions < LEAST_SAMPLE:
            least = shown(LEAST_SAMPLE * position * (1 + COPIES))
            raise InputError(
                f"memory is {memory}, but the inputs of one site need {least} at least; give that"
                " much, or take a method without them such as manu"
            )
        return cls(positions, max(1, most // positions - COPIES))


@dataclass
class Kept:
    """What enters some sites on all that is kept: samples.

    To read one site costs as much as to read all before it. So as many are read together as can be
    held, and anew only where that is not all.

    Attributes:
        access: The model.
        keys: The sites.
        bounds: How much is held.
        edits: What the model carries meanwhile.
        held: Site key -> set -> condition -> samples.
    """

    access: Access
    keys: Sequence[str]
    bounds: Bounds
    edits: Mapping[str, SiteEdit]
    held: dict[str, dict[str, dict[str, Tokens]]] = field(default_factory=dict)

    def at(self, key: str) -> dict[str, dict[str, Tokens]]:
        """By set and condition, the samples of one site; those of retain with their streams."""
        if key not in self.held:
            first = self.keys.index(key) // self.bounds.sites * self.bounds.sites
            self.held.clear()
            self._read(self.keys[first : first + self.bounds.sites])
        return self.held[key]

    def _read(self, keys: Sequence[str]) -> None:
        self.held |= {key: {} for key in keys}
        for name in (*ALL_KEPT, UNSEEN_SET):
            for condition in CONDITIONS:
                read = self.access.tokens(
                    name,
                    condition,
                    keys,
                    self.edits,
                    streams=name == "retain",
                    limit=self.bounds.positions,
                )
                for key, tokens in read.items():
                    self.held[key].setdefault(name, {})[condition] = tokens


def has_threshold(fit: Fit, background: Background) -> bool:
    """Whether a threshold can be made at a site: by a bias, or by what is much the same on all."""
    return fit.bias or background.steady >= STEADY


def spare_at(evidence: Evidence, key: str, samples: Mapping[str, Mapping[str, Tokens]]) -> Spare:
    """The neurons of a site that can be given up, from what enters it on all that is kept."""
    access = evidence.access
    assert evidence.weight is not None and access is not None
    kept = [t for name in ALL_KEPT for t in samples.get(name, {}).values()]
    used = torch.stack([t.used for t in kept]).amax(0)
    moment = moment_of(partial(access.said, key), [t.x for t in kept], len(used))
    return Spare.of(evidence.weight(key), used, moment)


@dataclass(frozen=True)
class Looked:
    """What is looked through.

    Attributes:
        condition: The condition.
        tokens: What enters the site at the forget questions under it, and the streams.
        parts: The subjects that are still known, and the part that each belongs to.
        number: How many detectors each gets at most.
        data: Name of the set that the questions are of.
    """

    condition: str
    tokens: Tokens
    parts: Mapping[str, Part]
    number: int
    data: str = "forget"


@dataclass
class Seeker:
    """Looks for detectors at one site.

    Attributes:
        access: The model.
        background: What is kept, to which detectors are fitted; see `Place.over_ones`.
        unseen: Inputs [n, in] about almost nothing, to which none is fitted: on what they are
            fitted to, detectors are quieter than elsewhere, so thresholds are above both.
        place: The site.
        usual: What its layer passes on for what is kept.
    """

    access: Access
    background: Background
    unseen: Tensor
    place: Place
    usual: Usual

    def seek(self, looked: Looked, view: str) -> list[Found]:
        """The detectors of the place with more of them, for subjects at the positions of a view.

        Those of the same subject and condition that were there already write something else then,
        but for those of the other kind: where questions end, or not.
        """
        tokens = looked.tokens
        assert tokens.question is not None
        owners = self.access.owners(looked.data, looked.condition)
        names = sorted(set(owners))
        own = torch.tensor([names.index(o) for o in owners])[tokens.question.cpu()]
        seen = tokens.asked  # of all views: the detectors of each are fitted together
        at_view = {PICTURE: tokens.picture, "multi": ~tokens.picture}
        inside = seen & at_view.get(view, seen)
        for known in self.place.found:
            inside = inside & (self.place.level(tokens.x, known.row) <= known.edge)
        subjects = sorted(looked.parts)
        mine, whole = (
            {name: torch.nonzero(at.cpu() & (own == names.index(name)))[:, 0] for name in subjects}
            for at in (inside, seen)
        )
        found = list(self.place.found)
        for name, new in self._subjects(looked, mine, view).items():
            found += new
            if new:
                found = self._writing(found, looked, name, whole[name], end=view == END)
        return found

    def _subjects(
        self, looked: Looked, mine: dict[str, Tensor], view: str
    ) -> dict[str, list[Found]]:
        """Detectors of subjects at their positions, subject by subject; one more each a turn."""
        tokens = looked.tokens
        assert tokens.question is not None and tokens.stream is not None
        total = {name: tokens.question[at].unique().numel() for name, at in mine.items()}
        found: dict[str, list[Found]] = {name: [] for name in mine}
        nothing = tokens.stream.new_zeros(tokens.stream.shape[1])
        for _ in range(looked.number):
            mine = {name: at for name, at in mine.items() if len(at) >= FEWEST}
            rows = self._detectors([tokens.x[at] for at in mine.values()])
            for (name, at), (row, kept) in zip(list(mine.items()), rows, strict=True):
                level = self.place.level(tokens.x[at], row)
                edge = kept + SLACK * (1 - kept)
                fires = level > edge
                questions = tokens.question[at][fires].unique().numel()
                if kept > HIGHEST or int(fires.sum()) < FEWEST or questions < COVER * total[name]:
                    mine[name] = at[(level < CLEAR).cpu()]
                    continue
                mean = float(level[fires].mean())
                part = looked.parts[name]
                new = Found(part, name, row / mean, edge / mean, nothing, end=view == END)
                found[name].append(new)
                mine[name] = at[~fires.cpu()]
        return found

    def _detectors(self, groups: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        """For each set of inputs a row, and its greatest level on what is kept or unseen."""
        background, whiten = self.background, self.background.whiten
        found: list[tuple[Tensor, float]] = []
        for begin in range(0, len(groups), AT_ONCE):
            some = [whiten(self.place.over_ones(x)) for x in groups[begin : begin + AT_ONCE]]
            rows = detectors(background, some)
            kept = rows @ background.kept.T
            plain = torch.stack([background.row(a).float() for a in rows])
            beyond = plain @ self.unseen.T / floored(self.ones)
            most = torch.cat([kept, beyond], 1).amax(1)
            found += zip(plain, most.tolist(), strict=True)
        return found

    @cached_property
    def ones(self) -> Tensor:
        """What stands for 1 at the unseen inputs, [n]."""
        return self.place.ones(self.unseen)

    def _writing(
        self, found: Sequence[Found], looked: Looked, name: str, positions: Tensor, *, end: bool
    ) -> list[Found]:
        """Detectors of which those of a subject and condition write what swaps the subject.

        Those of them that have nothing to say any more, as the sites before have changed, are left
        out.
        """
        own = looked.condition, name, end
        theirs = [i for i, f in enumerate(found) if (f.part[0], f.subject, f.end) == own]
        tokens = looked.tokens
        assert tokens.stream is not None
        x = tokens.x[positions]
        loud = torch.stack([self.place.loud(x, found[i]) for i in theirs], 1)
        heard = (loud > 0).any(1)
        wanted, said = [], []
        for picture in (False, True):
            here = heard & (tokens.picture[positions] == picture)
            at = thinned(torch.nonzero(here.cpu())[:, 0])
            usual = self.usual.stream(looked.condition, picture, x[at]) if len(at) else None
            if usual is not None:
                wanted.append((usual - tokens.stream[positions[at]]) / self.place.fit.passed)
                said.append(loud[at])
        if not said:
            return list(found)
        heard_at = torch.cat(said)
        writes = [self._unending(write) for write in written(heard_at, torch.cat(wanted))]
        energies = heard_at.square().sum(0) * torch.stack(writes).square().sum(1)
        new = dict(enumerate(found))
        for i, write, energy in zip(theirs, writes, energies.tolist(), strict=True):
            new[i] = replace(found[i], write=write, said=energy)
        return [f for i, f in new.items() if i not in theirs or f.said > 0]

    def _unending(self, write: Tensor) -> Tensor:
        """The same without what would make the model say nothing."""
        ends = self.access.ends
        if ends is None or len(ends) != len(write):
            return write
        ends = ends.to(write.device)
        return write - ends @ (ends.T @ write)
