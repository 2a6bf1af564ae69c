"""The forget/retain filter: from two second moments to low-rank factors.

C_f and C_r are uncentred second moments of what enters a down projection W [out, width], on the
forget and the retain set. The directions u of the generalised eigenproblem C_f u = lambda C_r u,
with u^T C_r u = 1, carry lambda times more forget than retain energy. Removing a share g of each
gives W' = W (I - sum_i g_i C_r u_i u_i^T), and g = mu lambda / (1 + mu lambda) is the minimiser of

    tr((W' - W) C_r (W' - W)^T) + mu tr(W' C_f W'^T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import InputError

EXACT_WIDTH = 1024
MAX_RANK = 256
BLOCK = 32


@dataclass(frozen=True)
class Directions:
    """Leading generalised eigen-directions of one site.

    Attributes:
        ratio: lambda, forget over retain energy, descending, [k].
        read: u_i as rows, [k, width]; u_i^T z is how much of direction i is in z.
        write: C_r u_i as columns, [width, k]; what removing direction i takes out of z.
    """

    ratio: Tensor
    read: Tensor
    write: Tensor

    def top(self, number: int) -> Directions:
        """The first `number` directions."""
        return Directions(self.ratio[:number], self.read[:number], self.write[:, :number])


@dataclass(frozen=True)
class Views:
    """Several forget moments of one site, seen inside one space of leading directions.

    Attributes:
        space: Directions u_i of the sum of the moments against C_r.
        parts: View -> u^T C_v u, [k, k].
    """

    space: Directions
    parts: Mapping[str, Tensor]

    def top(self, view: str) -> float:
        """Largest ratio of forget to retain energy of one view."""
        return float(torch.linalg.eigvalsh(self.parts[view])[-1])

    def weighted(self, weights: Mapping[str, float]) -> Directions:
        """Eigen-directions of the weighted sum of the views within the space; C_r is the same."""
        found = [w * self.parts[view] for view, w in weights.items() if view in self.parts]
        if not found:
            return self.space.top(0)
        values, rotation = torch.linalg.eigh(sum(found[1:], found[0]))
        values, rotation = values.flip(0).clamp_min(0), rotation.flip(1)
        return Directions(values, rotation.T @ self.space.read, self.space.write @ rotation)


def views(
    forget: Mapping[str, Tensor], retain: Tensor, *, ridge: float = 0.3, number: int = MAX_RANK
) -> Views:
    """The leading space of several forget moments, and each of them in it.

    Args:
        forget: View -> C_v [width, width]; at least one.
        retain: C_r [width, width]; see `directions`.
        ridge: See `directions`.
        number: Dimensions of the space at most.
    """
    total = torch.zeros_like(retain)
    for moment in forget.values():
        total += moment
    space = directions(total, retain, ridge=ridge, number=number)
    parts = {name: space.read @ moment @ space.read.T for name, moment in forget.items()}
    return Views(space, {name: (p + p.T) / 2 for name, p in parts.items()})


def conditioned(retain: Tensor, ridge: float, floor: Tensor | float = 0.0) -> Tensor:
    """C_r made positive definite: + ridge * median of its positive diagonal * I.

    Args:
        retain: Second moment [width, width], positive semi-definite.
        ridge: Share of the median diagonal that is added.
        floor: Least absolute amount added, for a site where nothing fired on retain.
    """
    diagonal = retain.diagonal()
    alive = diagonal[diagonal > 0]
    typical = alive.median() if alive.numel() else diagonal.new_tensor(0.0)
    amount = ridge * typical + floor
    tiny = torch.finfo(retain.dtype).eps * diagonal.abs().max().clamp_min(1e-30) * 10
    base = retain.clone()
    base.diagonal().add_(float(torch.max(amount, tiny)))
    return base


def directions(
    forget: Tensor, retain: Tensor, *, ridge: float = 0.3, number: int = MAX_RANK
) -> Directions:
    """Leading directions of C_f u = lambda (C_r + ridge) u.

    Args:
        forget: C_f [width, width].
        retain: C_r [width, width]; may be rank-deficient.
        ridge: Added to C_r, as a share of the median of its diagonal.
        number: How many directions at most.

    Returns:
        Finite directions, whatever the rank of the moments; in the moments' dtype.

    Raises:
        InputError: Moments that are not finite.
    """
    if not (torch.isfinite(forget).all() and torch.isfinite(retain).all()):
        raise InputError("a second moment is not finite; were the activations finite?")
    floor = 1e-6 * float(forget.diagonal().max()) if forget.numel() else 0.0
    factor = _cholesky(conditioned(retain, ridge, floor))
    number = min(number, forget.shape[0])
    if forget.shape[0] <= EXACT_WIDTH:
        ratio, vectors = _exact(forget, factor, number)
    else:
        ratio, vectors = _iterated(forget, factor, number)
    noise = torch.finfo(ratio.dtype).eps * forget.shape[0] * ratio.max()
    ratio = torch.where(ratio > noise, ratio, torch.zeros_like(ratio))
    read = torch.linalg.solve_triangular(factor.T, vectors, upper=True).T
    return Directions(ratio, read.contiguous(), (factor @ vectors).contiguous())


def workspace(width: int) -> int:
    """Bytes that `directions` takes at most for one site, its two arguments included.

    Measured: the dense solver holds eight more matrices at a time, the iteration three.
    """
    return 8 * width**2 * (10 if width <= EXACT_WIDTH else 5)


def _whitened(forget: Tensor, factor: Tensor) -> Tensor:
    half = torch.linalg.solve_triangular(factor, forget, upper=False)
    whole = torch.linalg.solve_triangular(factor, half.T, upper=False)
    even: Tensor = (whole + whole.T) / 2
    return even


def _exact(forget: Tensor, factor: Tensor, number: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(_whitened(forget, factor))
    values, vectors = values.flip(0)[:number], vectors.flip(1)[:, :number]
    return values.clamp_min(0), vectors.contiguous()


def _cholesky(base: Tensor) -> Tensor:
    """Lower factor of `base`, with more on its diagonal where rounding made it indefinite."""
    more = torch.finfo(base.dtype).eps * base.diagonal().sum()
    factor, failed = torch.linalg.cholesky_ex(base)
    while failed:
        base.diagonal().add_(more)
        more = more * 4
        factor, failed = torch.linalg.cholesky_ex(base)
    lower: Tensor = factor
    return lower


def _iterated(forget: Tensor, factor: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Block Krylov iteration with full reorthogonalisation (arXiv 1504.05477).

    The subspace has three times the dimensions that are asked for and some blocks more: a wide
    matrix is multiplied with a few columns at a time and never decomposed.
    """
    width = forget.shape[0]
    dimensions, block = min(width, 3 * number + 8 * BLOCK), min(width, BLOCK)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(width, block, generator=generator, dtype=forget.dtype).to(forget.device)

    def multiply(x: Tensor) -> Tensor:
        y = torch.linalg.solve_triangular(factor.T, x, upper=True)
        image: Tensor = torch.linalg.solve_triangular(factor, forget @ y, upper=False)
        return image

    basis = torch.linalg.qr(start).Q
    images = multiply(basis)
    while basis.shape[1] < dimensions:
        fresh = images[:, -block:]
        for _ in range(2):
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh)).Q
        fresh = fresh[:, : dimensions - basis.shape[1]]
        basis = torch.cat([basis, fresh], 1)
        images = torch.cat([images, multiply(fresh)], 1)
    small = basis.T @ images
    values, rotation = torch.linalg.eigh((small + small.T) / 2)
    values, rotation = values.flip(0)[:number], rotation.flip(1)[:, :number]
    vectors: Tensor = basis @ rotation
    return values.clamp_min(0), vectors


def shares(ratio: Tensor, mu: float, power: float = 1.0) -> Tensor:
    """Share of each direction removed, [0, 1): s / (1 + s) with s = (mu ratio)^power."""
    strength = (mu * ratio.clamp_min(0)) ** power
    return strength / (1 + strength)


def lowrank_edit(weight: Tensor, found: Directions, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of W' - W = A B for removing a share of each direction.

    Args:
        weight: W [out, width].
        found: k directions.
        removed: Share of each direction to remove, [k]; 1 removes it, more than 1 reverses it.

    Returns:
        A [out, k] and B [k, width], float32.
    """
    exact = found.write.dtype
    a = -(weight.to(exact) @ found.write) * removed.to(exact)
    scale = a.norm(dim=0).clamp_min(1e-30).sqrt() / found.read.norm(dim=1).clamp_min(1e-30).sqrt()
    return (a / scale).float(), (found.read * scale[:, None]).float()


def compressed(
    a: Tensor, b: Tensor, energy: float = 1.0, rank: int = MAX_RANK
) -> tuple[Tensor, Tensor, float]:
    """The best approximation of A B by rank, keeping at least `energy` of its squared norm.

    Returns:
        A' [out, r], B' [r, width] and the relative Frobenius error ||AB - A'B'|| / ||AB||.
    """
    qa, ra = torch.linalg.qr(a.double())
    qb, rb = torch.linalg.qr(b.double().T)
    u, s, vt = torch.linalg.svd(ra @ rb.T)
    total = float((s**2).sum())
    if total == 0:
        return a[:, :0], b[:0], 0.0
    cumulative = (s**2).cumsum(0) / total
    kept = min(rank, int((cumulative < energy - 1e-12).sum()) + 1, s.numel())
    root = s[:kept].sqrt()
    error = float((s[kept:] ** 2).sum() / total) ** 0.5
    left, right = qa @ u[:, :kept] * root, root[:, None] * (qb @ vt[:kept].T).T
    return left.float(), right.float(), error
