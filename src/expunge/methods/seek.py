"""Detectors at one site: looking for them, and making neurons of them; see `gated`."""

from __future__ import annotations

from collections import Counter
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
from expunge.methods.search import Strengths
from expunge.methods.spare import Spare, moment_of
from expunge.methods.swap import Usual, thinned, written
from expunge.passes import shown
from expunge.plan import SiteEdit
from expunge.rewire import Rewire

KEPT_SETS = ("retain", NOISE_SET, PLAIN_SET)
ALL_KEPT = (*KEPT_SETS, ASIDE)
COVER = 0.05
AT_ONCE = 16
FEWEST = 3
HIGHEST = 0.9
SAMPLE = 16384
HELD_SITES = 4
COPIES = 3
LEAST_SAMPLE = 512
BESIDE = 32
SHARP = 256.0
GAIN = 4.0
SLACK = 0.03
STEADY = 0.2


@dataclass(frozen=True)
class Found:
    """A detector: level(x) = row x (over constant x, where there is no bias).

    Attributes:
        part: The condition and the group of subjects it serves; see `search.Part`.
        subject: Whom it answers to.
        row: a, float32 [in]; its level is 1 on the mean of what it answers to.
        edge: Level at which it starts, over the greatest on what is kept.
        write: What it writes at level 1 and strength 1 / `GAIN`, float32 [out]; nothing along
            `Access.ends`.
        said: Sum of squares of all it writes at its subject's positions.
    """

    part: Part
    subject: str
    row: Tensor
    edge: float
    write: Tensor
    said: float = 0.0


@dataclass
class Place:
    """A site with what was found there.

    Attributes:
        fit: How new neurons can be put in.
        constant: Row that stands for 1 where there is no bias, float32 [in], or None.
        spare: Neurons that can be given up.
        found: Detectors.
    """

    fit: Fit
    constant: Tensor | None
    spare: Spare
    found: list[Found] = field(default_factory=list)

    def ones(self, x: Tensor) -> Tensor:
        """What stands for 1 at inputs [n, in]."""
        return x.new_ones(len(x)) if self.constant is None else x @ self.constant

    def over_ones(self, x: Tensor) -> Tensor:
        """Inputs [n, in], each over what stands for 1 at it."""
        return x if self.constant is None else x / floored(self.ones(x))[:, None]

    def level(self, x: Tensor, row: Tensor) -> Tensor:
        """How clearly inputs answer a row."""
        return (x @ row) / floored(self.ones(x))

    def loud(self, x: Tensor, found: Found) -> Tensor:
        """What the neuron of a detector says to inputs, at strength 1 / `GAIN`."""
        above = (x @ found.row - found.edge * self.ones(x)) / wide(found.edge)
        return above.clamp_min(0).pow(2 if self.squares(found) else 1)

    def squares(self, found: Found) -> bool:
        """Whether the neuron of a detector grows with the square of the level; see `_rewire`."""
        return self.fit.gated and (found.part[0] != "text" or self.constant is not None)


@dataclass(frozen=True)
class Bounds:
    """What is held of the inputs of what is kept.

    Attributes:
        positions: Positions of each set and condition at most.
        sites: Sites at a time.
    """

    positions: int = SAMPLE
    sites: int = HELD_SITES

    @classmethod
    def within(cls, memory: str | None, width: int) -> Bounds:
        """Bounds for inputs of a width, of which `COPIES` more are held while one is worked on."""
        if memory is None:
            return cls()
        position = 4 * width * (len(ALL_KEPT) + 2) * len(CONDITIONS)  # retain has streams too
        most = bytes_of(memory) // position
        positions = min(SAMPLE, most // (1 + COPIES))
        if positions < LEAST_SAMPLE:
            least = shown(LEAST_SAMPLE * position * (1 + COPIES))
            raise InputError(
                f"memory is {memory}, but the inputs of one site need {least} at least; give that"
                " much, or take a method without them such as manu"
            )
        return cls(positions, max(1, min(HELD_SITES, most // positions - COPIES)))


@dataclass
class Kept:
    """What enters the sites on all that is kept: samples of a few sites at a time.

    Attributes:
        access: The model.
        keys: The sites, in the order they are asked for.
        bounds: How much is held.
        edits: What the model carries meanwhile.
        held: Site key -> set -> samples.
    """

    access: Access
    keys: Sequence[str]
    bounds: Bounds
    edits: Mapping[str, SiteEdit] = field(default_factory=dict)
    held: dict[str, dict[str, dict[str, Tokens]]] = field(default_factory=dict)

    def at(self, key: str) -> dict[str, dict[str, Tokens]]:
        """By set and condition, the samples of one site; those of retain with their streams."""
        if key not in self.held:
            begin = self.keys.index(key)
            self._read(self.keys[begin : begin + self.bounds.sites])
        return self.held[key]

    def _read(self, keys: Sequence[str]) -> None:
        self.held = {key: {} for key in keys}
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
    """

    condition: str
    tokens: Tokens
    parts: Mapping[str, Part]
    number: int


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

        Those of the same subject and condition that were there already write something else then.
        """
        tokens = looked.tokens
        assert tokens.question is not None and tokens.answer is not None
        owners = self.access.owners("forget", looked.condition)
        names = sorted(set(owners))
        own = torch.tensor([names.index(o) for o in owners])[tokens.question.cpu()]
        inside = seen = ~tokens.answer  # of both views: the detectors of either are fitted together
        if view != "text":
            inside = inside & (tokens.picture if view == PICTURE else ~tokens.picture)
        for known in self.place.found:
            inside = inside & (self.place.level(tokens.x, known.row) <= known.edge)
        subjects = sorted(looked.parts)
        mine, whole = (
            {name: torch.nonzero(at.cpu() & (own == names.index(name)))[:, 0] for name in subjects}
            for at in (inside, seen)
        )
        found = list(self.place.found)
        for name, new in self._subjects(looked, mine).items():
            found += new
            if new:
                found = self._writing(found, looked, name, whole[name])
        return found

    def _subjects(self, looked: Looked, mine: dict[str, Tensor]) -> dict[str, list[Found]]:
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
                found[name].append(Found(part, name, row / mean, edge / mean, nothing))
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
        self, found: Sequence[Found], looked: Looked, name: str, positions: Tensor
    ) -> list[Found]:
        """Detectors of which those of a subject and condition write what swaps the subject.

        Those of them that have nothing to say any more, as the sites before have changed, are left
        out.
        """
        theirs = [
            i for i, f in enumerate(found) if (f.part[0], f.subject) == (looked.condition, name)
        ]
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


def floored(ones: Tensor) -> Tensor:
    """What stands for 1, kept away from 0."""
    return ones.clamp_min(STEADY / 10)


def wide(edge: float) -> float:
    """How far it is from where a detector starts to level 1."""
    return max(1 - edge, 1 - HIGHEST)


def edits_at(places: Mapping[str, Place], strengths: Strengths) -> dict[str, SiteEdit]:
    """The edits at given strengths (by part; 0 leaves it out).

    Where there are more detectors than neurons to give up, those are put in that write most for
    their part, the first of every part before the second of any.
    """
    edits = {}
    for key, place in places.items():
        new = [f for f in place.found if strengths.get(f.part, 0.0) > 0]
        if new:
            chosen = in_turn(new)[: len(place.spare.pool)]
            new_neurons = _rewire(place, chosen, strengths)
            edits[key] = SiteEdit(lowrank=place.spare.stand_in(len(chosen)), rewire=new_neurons)
    return edits


def in_turn(found: Sequence[Found]) -> list[Found]:
    """The detectors, that which writes most of every part first, then the second of every part."""
    turns: Counter[Part] = Counter()
    order = []
    for each in sorted(found, key=lambda f: -f.said):
        order.append((turns[each.part], each))
        turns[each.part] += 1
    return [each for _, each in sorted(order, key=lambda o: o[0])]


def _rewire(place: Place, new: Sequence[Found], strengths: Strengths) -> Rewire:
    """New neurons for detectors, in the places of the least used ones.

    Where gate and up read the same, what a neuron says grows with the square of how far an input is
    above the threshold: what is only just above it, as inputs of no known kind mostly are, hardly
    counts. A neuron without a gate can only grow with it, and one for questions in text does: there
    other words of a question are often only just above, and skills are not.
    """
    edges = torch.tensor([f.edge for f in new])
    gains = torch.tensor([GAIN * strengths[f.part] for f in new])
    write = torch.stack([f.write for f in new], 1).cpu()
    rows = torch.stack([f.row for f in new]).cpu()
    width = torch.tensor([wide(f.edge) for f in new])
    # as loud as makes the weights out of the new neuron about as large as those of the others
    amount = (gains * write.norm(dim=0) / place.spare.size).clamp_min(1e-6)
    sharp = torch.full_like(amount, SHARP) if place.fit.gated else amount.clamp_min(SHARP)
    bias = torch.zeros_like(edges)
    if place.constant is None:
        bias = -sharp * edges / width
    else:
        rows = rows - edges[:, None] * place.constant.cpu()
    gate = (sharp / width)[:, None] * rows
    loud = amount / sharp.square() if place.fit.gated else amount[:0]
    squares = torch.tensor([place.squares(f) for f in new])
    down = write * (gains / (amount if place.fit.gated else sharp))
    pool = place.spare.pool[: 2 * len(new) + BESIDE]
    order = pool[: len(new)].argsort()
    factor, constant = loud, loud[:0]
    if place.fit.gated:
        factor = torch.where(squares, loud, 0.0)[order]
        constant = torch.where(squares, 0.0, loud * sharp)[order]
    return Rewire(
        pool[: len(new)][order],
        gate[order],
        bias[order],
        factor,
        down[:, order],
        pool.sort().values,
        constant if bool(constant.any()) else constant[:0],
    )
