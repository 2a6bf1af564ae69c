"""What new neurons write: the state of a subject they do not know in the place of one they do.

At a position that a detector answers to, the layer passes on h. At the kept positions that are most
like it (the same word of another question, say, about somebody else) it passes on others, whose
mean r is what one would expect there of nobody in particular. The neurons of a subject write, as
nearly as they can, r - h: by least squares over the subject's positions, given how loud each neuron
is at each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.detectors import Background
from expunge.methods.base import Tokens

LIKE = 16
RIDGE = 0.01
QUIET = 0.1
POSITIONS = 2048
AT_ONCE = 512


@dataclass
class Usual:
    """What a layer passes on at kept positions like a given one.

    Attributes:
        background: What is kept at the site.
        kept: Condition -> positions to compare with, with their streams.
    """

    background: Background
    kept: Mapping[str, Tokens]
    _held: dict[tuple[str, bool], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def stream(self, condition: str, picture: bool, x: Tensor) -> Tensor | None:
        """Mean stream of the `LIKE` kept positions most like each.

        Like by the cosine of what enters, whitened.

        Args:
            condition: Under which the positions to compare with were asked.
            picture: Whether these are to hold a part of a picture.
            x: What enters the site, [n, in].

        Returns:
            [n, out], or None where there is nothing to compare with.
        """
        known = self._kept(condition, picture)
        if known is None:
            return None
        unit, streams = known
        near = [
            streams[(self.background.whiten(part) @ unit.T).topk(min(LIKE, len(unit))).indices]
            for part in x.split(AT_ONCE)
        ]
        return torch.cat([each.mean(1) for each in near])

    def _kept(self, condition: str, picture: bool) -> tuple[Tensor, Tensor] | None:
        """Whitened inputs of length 1 and streams of what is compared with."""
        place = condition, picture
        if place not in self._held:
            tokens = self.kept.get(condition)
            if tokens is None or tokens.stream is None:
                return None
            chosen = tokens.picture == picture
            if not bool(chosen.any()):
                return None
            white = self.background.whiten(tokens.x[chosen])
            unit = white / white.norm(dim=1, keepdim=True).clamp_min(1e-9)
            self._held[place] = unit, tokens.stream[chosen]
        return self._held[place]


def written(loud: Tensor, wanted: Tensor) -> Tensor:
    """What each neuron has to write so that together they write what is wanted.

    Args:
        loud: How loud each neuron is at each position, [n, neurons].
        wanted: What is to be written, [n, out].

    Returns:
        V [neurons, out] that minimises |loud V - wanted|^2 + sum_j b_j |V_j|^2. b_j is `RIDGE` of
        the square of the norm of neuron j's column, so that no neuron is held down because another
        is louder, but at least `QUIET`^2 for each position that hears it: what only just speaks
        here would otherwise shout where it speaks clearly. 0 for neurons that are silent
        everywhere.
    """
    said = loud.double()
    gram = said.T @ said
    ridge = torch.maximum(RIDGE * gram.diagonal(), QUIET**2 * (said > 0).sum(0))
    gram = gram + torch.diag(torch.where(ridge > 0, ridge, 1.0))
    solved: Tensor = torch.linalg.solve(gram, said.T @ wanted.double())
    return solved.float()


def thinned(positions: Tensor) -> Tensor:
    """At most `POSITIONS` of them, evenly spread."""
    return positions[:: -(-len(positions) // POSITIONS)] if len(positions) else positions
