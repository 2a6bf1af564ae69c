"""Neurons that can be given up, and how the others make up for them.

Every network has neurons that hardly say anything, but tens of them together are missed. What one
of them says can be told, for a good part, from what the others say: by least squares over what is
kept, z_G is near B z_K. So the weights out of the neurons K that stay take over those of the
neurons G that go, W_K + W_G B, which is the closed form of Hassibi and Stork, Second order
derivatives for network pruning: Optimal brain surgeon, 1993, with the second moment of what is kept
as the Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SHARE = 8
RIDGE = 0.1
ENOUGH = 2


@dataclass(frozen=True)
class Spare:
    """The neurons of a site that can be given up.

    Attributes:
        pool: Which they are, least used first, int64 [n].
        out: Their weights out, float32 [out, n].
        inverse: Their rows of the inverse of the second moment and a ridge, float32 [n, width].
        size: Typical (median) norm of the weights out of a neuron of the site.
    """

    pool: Tensor
    out: Tensor
    inverse: Tensor
    size: float

    @classmethod
    def of(cls, weight: Tensor, used: Tensor, samples: Sequence[Tensor]) -> Spare:
        """Find them: those whose root mean square times the norm of their weights out is least.

        Args:
            weight: Down projection, [out, width].
            used: Root mean square of z, [width].
            samples: z on each set of what is kept, [n, width]; each set counts alike.
        """
        weight = weight.float()
        norms = weight.norm(dim=0)
        loss = used.to(norms.device) * norms
        pool = loss.argsort(stable=True)[: max(1, len(loss) // LARGEST_SHARE)]
        moment = sum((z.T @ z / len(z)).double() for z in samples)
        assert isinstance(moment, Tensor)
        typical = moment.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        factor = torch.linalg.cholesky(moment + RIDGE * typical * unit)
        chosen = pool.to(moment.device)
        inverse = torch.cholesky_solve(unit[:, chosen], factor).T
        out, size = weight[:, pool].cpu(), float(norms.median())
        return cls(pool.cpu(), out, inverse.float().cpu(), size)

    def stand_in(self, number: int) -> tuple[Tensor, Tensor]:
        """What to add to the down projection when the first `number` are given up.

        Returns:
            (A [out, number], B [number, width]): A holds their weights out, in the order of their
            numbers, B foretells what they say from the neurons that stay; 0 at those that go.
        """
        gone, order = self.pool[:number].sort()
        rows = self.inverse[order].double()
        foretold = -torch.linalg.solve(rows[:, gone], rows)
        return self.out[:, order], foretold.index_fill(1, gone, 0.0).float()


def enough(x: Tensor, width: int) -> Tensor:
    """Of the inputs of a site [n, in], evenly spread, as many as tell how its neurons relate."""
    return x[:: max(1, len(x) // (ENOUGH * width))]
