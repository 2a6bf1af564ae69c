"""Neurons that can be given up, and how the others make up for them.

Every network has neurons that hardly say anything, but tens of them together are missed. What one
of them says can be told, for a good part, from what the others say: by least squares over what is
kept, z_G is near B z_K. So the weights out of the neurons K that stay take over those of the
neurons G that go, W_K + W_G B, which is the closed form of Hassibi and Stork, Second order
derivatives for network pruning: Optimal brain surgeon, 1993, with the second moment of what is kept
as the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.stats import SecondMoment
from expunge.subspace import conditioned

LARGEST_SHARE = 8
RIDGE = 0.1
HEARD = 0.1
WRITTEN_RIDGE = 1e-6
ENOUGH = 2
AT_ONCE = 8192


@dataclass(frozen=True)
class Spare:
    """The neurons of a site that can be given up.

    Attributes:
        pool: Which they are, least used first, int64 [n].
        out: Their weights out, float32 [out, n].
        inverse: Their rows of the inverse of the second moment and a ridge, float32 [n, width].
        moment: What they say together, their part of that second moment, float64 [n, n].
        against: W_G^T T^-1 W_G, with their weights out and the second moment T of what the site
            writes, float64 [n, n].
        size: Typical (median) norm of the weights out of a neuron of the site.
    """

    pool: Tensor
    out: Tensor
    inverse: Tensor
    moment: Tensor
    against: Tensor
    size: float

    @classmethod
    def of(cls, weight: Tensor, used: Tensor, moment: Tensor) -> Spare:
        """Find them: those whose root mean square times the norm of their weights out is least.

        Args:
            weight: Down projection, [out, width].
            used: Root mean square of z, [width].
            moment: Second moment of z on what is kept, [width, width] float64; a ridge is added.
        """
        exact = weight.to(moment)
        norms = weight.float().norm(dim=0)
        loss = used.to(norms.device) * norms
        pool = loss.argsort(stable=True)[: max(1, len(loss) // LARGEST_SHARE)]
        typical = moment.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        moment.diagonal().add_(RIDGE * typical)
        chosen = moment.new_zeros(len(moment), len(pool))
        chosen[pool, torch.arange(len(pool))] = 1
        inverse = torch.cholesky_solve(chosen, torch.linalg.cholesky(moment)).T
        out = exact[:, pool]
        written = conditioned(exact @ moment @ exact.T, WRITTEN_RIDGE)
        against = out.T @ torch.cholesky_solve(out, torch.linalg.cholesky(written))
        return cls(
            pool.cpu(),
            out.float().cpu(),
            inverse.float().cpu(),
            moment[pool][:, pool].cpu(),
            against.cpu(),
            float(norms.median()),
        )

    def stand_in(self, number: int) -> tuple[Tensor, Tensor]:
        """What to add to the down projection when the first `number` are given up.

        Left out are directions along which that would be less than the share `HEARD` of what the
        site writes along them.

        Returns:
            (A [out, number], B [number, width]): A holds their weights out, in the order of their
            numbers, without those directions, B foretells what they say from the neurons that stay;
            0 at those that go.
        """
        gone, order = self.pool[:number].sort()
        rows = self.inverse[order].double()
        schur = rows[:, gone]
        foretold = -torch.linalg.solve(schur, rows)
        said = self.moment[order][:, order] - torch.linalg.inv(schur)  # second moment of B z
        against = self.against[order][:, order]
        values, vectors = torch.linalg.eigh((said + said.T) / 2)
        root = vectors * values.clamp_min(0).sqrt()
        shares, turn = torch.linalg.eigh(root.T @ against @ root)
        heard = shares > HEARD**2
        along = root @ turn[:, heard]
        projection = along / shares[heard] @ along.T @ against
        out = self.out[:, order] @ projection.float()
        return out, foretold.index_fill(1, gone, 0.0).float()


def moment_of(said: Callable[[Tensor], Tensor], samples: Sequence[Tensor], width: int) -> Tensor:
    """Second moment of what the neurons of a site say on all that is kept, [width, width] float64.

    Args:
        said: Inputs [n, in] -> z [n, width].
        samples: Inputs on each set of what is kept; each set counts alike, and of each only as many
            are read, evenly spread, as tell how the neurons relate.
        width: Number of neurons.
    """
    total = torch.zeros(width, width, dtype=torch.float64, device=samples[0].device)
    for x in samples:
        moment = SecondMoment.zeros(width, x.device)
        for part in x[:: max(1, len(x) // (ENOUGH * width))].split(AT_ONCE):
            moment.update(said(part))
        total += moment.mean
    return total
