"""A part of every input that is always the same, for MLPs that can have no biases (ours).

A threshold needs something that is the same on every input. Biases of the values of attention add
the same to the stream at every position, so where an MLP can have no bias of its own they can make
it. Of the changes d of a layer's biases that one is taken which is heard best over what the stream
varies by anyway,

    max_d (E d)^T S^-1 (E d)   with   |E d|^2 / (share * length)^2 + |d|^2 / (LARGEST * size)^2 = 1

with E what they write, S the covariance and `length` the mean length of the stream before the MLP,
`size` that of values: the leading generalised eigenvector. Later layers have what earlier ones
made, and make more where it is drowned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.data import CONDITIONS
from expunge.methods.base import Evidence
from expunge.methods.erase import allowed
from expunge.plan import SiteEdit

if TYPE_CHECKING:
    from expunge.sites import Values

SHARES = (0.3, 0.2, 0.1)
LARGEST = 10.0
ENOUGH = 20.0
PART = 0.3
POSITIONS = 4096
AT_ONCE = 4
RIDGE = 1e-3


@dataclass(frozen=True)
class Stream:
    """What a layer adds the output of its MLP to.

    Attributes:
        mean: [out] float64.
        inverse: Inverse of the covariance and a ridge, [out, out] float64.
        length: Mean length.
    """

    mean: Tensor
    inverse: Tensor
    length: float

    @classmethod
    def of(cls, rows: Tensor) -> Stream:
        """From a sample of positions, [n, out]."""
        rows = rows.double()
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        typical = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        covariance.diagonal().add_(RIDGE * typical)
        return cls(mean, torch.linalg.inv(covariance), float(rows.norm(dim=1).mean()))

    def heard(self, constant: Tensor) -> float:
        """How many standard deviations the best row hears a constant [out] by."""
        return float(constant @ self.inverse @ constant) ** 0.5


def grounds(evidence: Evidence) -> dict[str, Tensor]:
    """Changes of the biases of values that give every site a constant, as far as it costs nothing.

    The greatest of `SHARES` by which retain subjects, texts and answers to questions about almost
    nothing lose at most the share `PART` of what `erase.allowed` lets them lose.

    Returns:
        Site key -> change [n]; empty where all sites can have biases, or hear a constant already,
        or none can be made.
    """
    access, judge = evidence.access, evidence.judge
    assert access is not None and judge is not None
    fits = {s.key: access.fit(s.key) for s in evidence.sites}
    lacking = [key for key, fit in fits.items() if fit is not None and not fit.bias]
    makers = {key: able for key in lacking if (able := access.values(key)) is not None}
    if not makers:
        return {}
    streams = _streams(evidence, list(makers))
    start = judge.cost({})
    most = {n: start[n] + PART * (nll - start[n]) for n, nll in allowed(start).items()}
    for share in SHARES:
        made = constants(makers, streams, share)
        cost = judge.cost({key: SiteEdit(ground=d) for key, d in made.items()}, most)
        if all(nll <= most[name] for name, nll in cost.items()):
            return made
    return {}


def constants(
    makers: Mapping[str, Values], streams: Mapping[str, Stream], share: float
) -> dict[str, Tensor]:
    """The changes, site after site, float32; none where what is there is heard by `ENOUGH`."""
    made: dict[str, Tensor] = {}
    before: Tensor | float = 0.0
    for key, stream in streams.items():
        constant = stream.mean + before
        if stream.heard(constant) >= ENOUGH:
            continue
        maker = makers[key]
        write = maker.write.to(stream.mean)
        room = write.T @ write / (share * stream.length) ** 2
        room.diagonal().add_(1 / (LARGEST * maker.size) ** 2)
        half = torch.linalg.inv(torch.linalg.cholesky(room))
        heard = half @ (write.T @ stream.inverse @ write) @ half.T
        change = half.T @ torch.linalg.eigh(heard).eigenvectors[:, -1]
        added = write @ change
        if float(added @ stream.inverse @ constant) < 0:
            change, added = -change, -added
        made[key] = change.float().cpu()
        before = before + added
    return made


def _streams(evidence: Evidence, keys: Sequence[str]) -> dict[str, Stream]:
    """The streams before some MLPs on retain: what their layers pass on less what they add."""
    access = evidence.access
    assert access is not None and evidence.weight is not None
    found = {}
    for begin in range(0, len(keys), AT_ONCE):
        some = keys[begin : begin + AT_ONCE]
        read = [access.tokens("retain", c, some, streams=True, limit=POSITIONS) for c in CONDITIONS]
        for key in some:
            weight = evidence.weight(key)
            rows = [
                t.stream - access.said(key, t.x) @ weight.to(t.x).T
                for each in read
                if (t := each.get(key)) is not None and t.stream is not None
            ]
            found[key] = Stream.of(torch.cat(rows))
    return found
