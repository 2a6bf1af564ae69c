"""Detectors at one site: looking for them, and making neurons of them; see `gated`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    Access,
    Evidence,
    Fit,
    Tokens,
)
from expunge.methods.search import Strengths
from expunge.passes import shown
from expunge.plan import Rewire, SiteEdit

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
SPARE = 32
LARGEST_SHARE = 8
SHARP = 256.0
GAIN = 8.0
SLACK = 0.15
STEADY = 0.5


@dataclass(frozen=True)
class Found:
    """A detector: level(x) = row x (over constant x, where there is no bias).

    Attributes:
        condition: The condition it serves.
        row: a, float32 [in]; its level is 1 on the mean of its group.
        kept: Greatest level on what is kept.
        take: What the MLP puts out on its group, float32 [out]; nothing along `Access.ends`.
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
        position = 4 * width * len(ALL_KEPT) * len(CONDITIONS)
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
    held: dict[str, dict[str, list[Tokens]]] = field(default_factory=dict)

    def at(self, key: str) -> dict[str, list[Tokens]]:
        """By set, the samples of one site."""
        if key not in self.held:
            begin = self.keys.index(key)
            self._read(self.keys[begin : begin + self.bounds.sites])
        return self.held[key]

    def _read(self, keys: Sequence[str]) -> None:
        self.held = {key: {} for key in keys}
        for name in ALL_KEPT:
            for condition in CONDITIONS:
                read = self.access.tokens(
                    name, condition, keys, self.edits, limit=self.bounds.positions
                )
                for key, tokens in read.items():
                    self.held[key].setdefault(name, []).append(tokens)


def place_at(
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


@dataclass
class Seeker:
    """Looks for detectors at one site."""

    access: Access
    background: Background
    place: Place

    def seek(self, looked: Looked, view: str) -> list[Found]:
        """Detectors of the subjects at the positions of a view."""
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
        mine = {
            name: torch.nonzero(inside.cpu() & (own == names.index(name)))[:, 0]
            for name in sorted(looked.subjects)
        }
        return self._subjects(looked, mine)

    def _subjects(self, looked: Looked, mine: dict[str, Tensor]) -> list[Found]:
        """Detectors of subjects at their positions, subject by subject; one more each a turn."""
        tokens = looked.tokens
        assert tokens.question is not None and tokens.out is not None
        total = {name: tokens.question[at].unique().numel() for name, at in mine.items()}
        found: dict[str, list[Found]] = {name: [] for name in mine}
        for _ in range(looked.number):
            mine = {name: at for name, at in mine.items() if len(at) >= FEWEST}
            rows = self._detectors([tokens.x[at] for at in mine.values()])
            for (name, at), (row, kept) in zip(list(mine.items()), rows, strict=True):
                level = self._level(tokens.x[at], row)
                fires = level > kept
                questions = tokens.question[at][fires].unique().numel()
                if kept > HIGHEST or int(fires.sum()) < FEWEST or questions < COVER * total[name]:
                    mine[name] = at[(level < CLEAR).cpu()]
                    continue
                weight = (level - kept).clamp_min(0)
                take = self._unending((weight[:, None] * tokens.out[at]).sum(0) / weight.sum())
                mean = float(level[fires].mean())
                found[name].append(Found(looked.condition, row / mean, kept / mean, take))
                mine[name] = at[~fires.cpu()]
        return [each for name in found for each in found[name]]

    def _detectors(self, groups: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        """For each set of inputs a row, and its greatest level on what is kept."""
        background = self.background
        found = []
        for begin in range(0, len(groups), AT_ONCE):
            some = [background.whiten(x) for x in groups[begin : begin + AT_ONCE]]
            rows = detectors(background, some)
            levels = rows @ background.kept.T
            if self.place.constant is not None:
                levels /= floored(background.ones)
            most = levels.amax(1).tolist()
            found += [(background.row(a).float(), m) for a, m in zip(rows, most, strict=True)]
        return found

    def _unending(self, take: Tensor) -> Tensor:
        """The same without what, taken out, would make the model say nothing instead."""
        ends = self.access.ends
        if ends is None or len(ends) != len(take):
            return take
        ends = ends.to(take.device)
        return take - ends @ (ends.T @ take)

    def _level(self, x: Tensor, row: Tensor) -> Tensor:
        """How clearly inputs answer a row; without a bias, against the row that stands for one."""
        if self.place.constant is None:
            return x @ row
        return (x @ row) / floored(x @ self.place.constant)


def floored(ones: Tensor) -> Tensor:
    """What stands for 1, kept away from 0."""
    return ones.clamp_min(STEADY / 10)


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
    """New neurons for detectors, in the places of the least used ones.

    What a neuron with a gate says grows with the square of how far an input is above the
    threshold, since gate and up read the same: what is only just above it, as inputs of no known
    kind mostly are, hardly counts. A neuron without a gate can only grow with it.
    """
    edges = torch.tensor([threshold(f.kept, strengths[f.condition]) for f in new])
    gains = torch.tensor([GAIN * strengths[f.condition] for f in new])
    take = torch.stack([f.take for f in new], 1).cpu()
    if place.constant is None:
        one = torch.cat([torch.zeros(len(new[0].row)), torch.ones(1)])
    else:
        one = torch.cat([place.constant.cpu(), torch.zeros(1)])
    rows = torch.stack([torch.cat([f.row.cpu(), torch.zeros(1)]) for f in new])
    wide = (1 - edges).clamp_min(1 - HIGHEST)
    # as loud as makes the weights out of the new neuron about as large as those of the others
    amount = (gains * take.norm(dim=0) / place.size).clamp_min(1e-6)
    sharp = torch.full_like(amount, SHARP) if place.fit.gated else amount.clamp_min(SHARP)
    above = (rows - edges[:, None] * one) / wide[:, None]
    gate = sharp[:, None] * above
    up = (amount / sharp)[:, None] * above if place.fit.gated else gate[:0]
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
    """Where a detector starts: above the greatest level on what is kept, the more the weaker.

    At strengths over 1 it starts at that level: never where something that must stay is.
    """
    return kept + SLACK * max(0.0, -math.log2(strength)) * (1 - kept)
