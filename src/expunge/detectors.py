"""Detectors: directions of what enters an MLP that single out the forget set (ours).

A linear edit takes the same share of a direction from everybody who has some of it. A neuron has a
threshold: it can be silent on everything that must stay and speak on what must go. A detector is
such a neuron's input side: a row a and a threshold t with a x near 1 on some inputs x of the forget
set and a x <= t on all that stands for what is kept. It is found from a sample of inputs, in a few
rounds of

    min_a  E[(a x - near)^2] + ridge |a|^2 + sum_i c_i (a x_i - near)^2   with  a m = 1

with the mean over what is kept, m the mean of the inputs to be found (those that answer most
clearly, chosen anew in each round), and weights c_i that grow by as much as a kept input x_i comes
nearer than `near`, as in a support vector machine with squared hinge loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, eigsh
from torch import Tensor

RIDGE = 3.0
NEAR = 0.3
WEIGHT = 0.1
CLEAR = 0.5
PEAK = 0.98
ROUNDS = 8
HARD = 2000
SOLVER_STEPS = 40
TOLERANCE = 1e-3
DIRECT = 256
LANCZOS = 64


@dataclass(frozen=True)
class Background:
    """What is kept, in coordinates where its second moment and a ridge are the identity.

    Attributes:
        factor: Lower Cholesky factor of C + ridge * mean diag C * I, [width, width] float64.
        kept: Inputs that a detector must not answer to, whitened, [n, width] float32.
        mean: Mean of the whitened inputs, [width] float32.
        constant: Row with constant x near 1 on every input, least squares, [width] float64.
        steady: Least value of constant x on what is kept, but for one input in a thousand.
    """

    factor: Tensor
    kept: Tensor
    mean: Tensor
    constant: Tensor
    steady: float

    @classmethod
    def of(cls, kept: Tensor, ridge: float = RIDGE) -> Background:
        """From a sample of inputs [n, width] of what is kept."""
        width = kept.shape[1]
        total = torch.zeros(width, width, dtype=torch.float64, device=kept.device)
        for part in kept.split(8192):
            total += part.T.double() @ part.double()
        total /= max(len(kept), 1)
        mean = kept.double().mean(0)
        unit = torch.eye(len(total), dtype=total.dtype, device=total.device)
        typical = total.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        constant = torch.linalg.solve(total + 1e-2 * typical * unit, mean)
        factor = torch.linalg.cholesky(total + ridge * typical * unit)
        white = _whitened(factor, kept)
        ones = (kept.float() @ constant.float()).sort().values
        steady = float(ones[len(ones) // 1000])
        return cls(factor, white.contiguous(), white.mean(0), constant, steady)

    def whiten(self, x: Tensor) -> Tensor:
        """Inputs [n, width] in these coordinates, float32."""
        return _whitened(self.factor, x)

    def row(self, a: Tensor) -> Tensor:
        """The row that reads plain inputs as `a` [width] reads whitened ones, float64."""
        return torch.linalg.solve_triangular(self.factor.T, a.double()[:, None], upper=True)[:, 0]


def _whitened(factor: Tensor, x: Tensor) -> Tensor:
    white: Tensor = torch.linalg.solve_triangular(factor.float(), x.float().T, upper=False).T
    return white


def detectors(background: Background, groups: Sequence[Tensor]) -> Tensor:
    """For each set of inputs, one detector of the largest group of alike ones among them.

    What is kept is read once a round for all of them, which is most of the work.

    Args:
        background: What is kept.
        groups: Whitened inputs of the forget set, each [n, width] float32; at least one each.

    Returns:
        a [len(groups), width] in whitened coordinates, 1 on the mean of its group.
    """
    scores = [_upright(found @ _leading(found)) for found in groups]
    weights = background.kept.new_zeros(len(groups), len(background.kept))
    rows = background.kept.new_zeros(len(groups), len(background.mean))
    for round_ in range(2 * ROUNDS):
        if round_ >= ROUNDS:
            weights += WEIGHT * (rows @ background.kept.T - NEAR).clamp_min(0)
        means = torch.stack([_clear_mean(x, s) for x, s in zip(groups, scores, strict=True)])
        rows = _solve(background, weights, means)
        scores = [x @ a for x, a in zip(groups, rows, strict=True)]
    return rows


def _upright(scores: Tensor) -> Tensor:
    """The scores with the sign that makes the largest positive."""
    return scores if scores[scores.abs().argmax()] > 0 else -scores


def _leading(found: Tensor) -> Tensor:
    """Leading right singular vector [width] of inputs [n, width]."""
    small = found if found.shape[0] <= found.shape[1] else found.T
    top = _top((small.double() @ small.double().T).cpu().numpy())
    leading = torch.as_tensor(top, dtype=found.dtype, device=found.device)
    vector = leading if found.shape[0] > found.shape[1] else found.T @ leading
    return vector / vector.norm().clamp_min(1e-30)


def _top(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leading eigenvector of a symmetric matrix; of nothing but zeros any vector."""
    if len(gram) >= LANCZOS:
        with suppress(ArpackError):  # does not converge, or has nothing to begin with
            top: NDArray[np.float64] = eigsh(gram, k=1, v0=np.ones(len(gram)))[1][:, 0]
            return top
    return np.linalg.eigh(gram)[1][:, -1]


def _clear_mean(found: Tensor, scores: Tensor) -> Tensor:
    """Mean of the inputs that answer most clearly, each by how clearly it does."""
    peak = scores.quantile(PEAK) if len(scores) > 50 else scores.max()
    clear = (scores / peak.clamp_min(1e-12) - CLEAR).clamp(0, 1)
    mean: Tensor = (clear[:, None] * found).sum(0) / clear.sum().clamp_min(1e-12)
    return mean


def _solve(background: Background, weights: Tensor, means: Tensor) -> Tensor:
    """The minimisers [groups, width] for given weights [groups, n] of the kept inputs."""
    most = min(HARD, int((weights > 0).sum(1).max()))
    if most:
        c, hard = weights.topk(most, dim=1, sorted=False)  # of weight 0 where a group has fewer
        x = background.kept[hard]
        pull = NEAR * (background.mean + (c[:, None] @ x)[:, 0])
        near, toward = _solved(x, c, torch.stack([pull, means], 2)).unbind(2)
    else:
        near, toward = (NEAR * background.mean).expand_as(means), means
    short = 1 - (means * near).sum(1, keepdim=True)
    return near + short / (means * toward).sum(1, keepdim=True).clamp_min(1e-12) * toward


def _solved(x: Tensor, c: Tensor, right: Tensor) -> Tensor:
    """Solve (I + X^T diag(c) X) y = right for each column of right, one problem a group.

    Directly where that is quick (up to `DIRECT` wide, or no wider than n), else by conjugate
    gradients.

    Args:
        x: X, [groups, n, width].
        c: Weights, at least 0, [groups, n].
        right: [groups, width, k].
    """
    if right.shape[1] <= max(DIRECT, x.shape[1]):
        unit = torch.eye(right.shape[1], dtype=torch.float64, device=right.device)
        whole = unit + (x.mT @ (c[:, :, None] * x)).double()
        return torch.cholesky_solve(right.double(), torch.linalg.cholesky(whole)).float()
    y, rest = torch.zeros_like(right), right.clone()
    step = rest.clone()
    size = (rest * rest).sum(1, keepdim=True)
    enough = TOLERANCE**2 * size.clamp_min(1e-30)
    for _ in range(SOLVER_STEPS):
        image = step + x.mT @ (c[:, :, None] * (x @ step))
        length = size / (step * image).sum(1, keepdim=True).clamp_min(1e-30)
        y = y + length * step
        rest = rest - length * image
        new = (rest * rest).sum(1, keepdim=True)
        if bool((new <= enough).all()):
            break
        step = rest + new / size.clamp_min(1e-30) * step
        size = new
    return y
