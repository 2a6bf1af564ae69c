"""New neurons of detectors: what they say, and how they are put in; see `gated`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.methods.base import Fit, Part
from expunge.methods.search import Strengths
from expunge.methods.spare import Spare
from expunge.plan import SiteEdit
from expunge.rewire import Rewire

HIGHEST = 0.9
BESIDE = 32
SHARP = 256.0
GAIN = 4.0
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
        end: Whether it was found where questions end.
    """

    part: Part
    subject: str
    row: Tensor
    edge: float
    write: Tensor
    said: float = 0.0
    end: bool = False


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
        plain = found.end or found.part[0] == "text"
        return self.fit.gated and not (plain and self.constant is None)


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
    other words of a question are often only just above, and skills are not. So does one for where
    questions end: little but the subject is above there, and other views of a picture less so than
    those it was found with.
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
    down = write * (gains / (amount if place.fit.gated else sharp))
    pool = place.spare.pool[: 2 * len(new) + BESIDE]
    order = pool[: len(new)].argsort()
    factor = constant = amount[:0]
    if place.fit.gated:
        loud = amount / sharp.square()
        squares = torch.tensor([place.squares(f) for f in new])
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
