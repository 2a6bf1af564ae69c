"""New neurons in the place of old ones: what a plan holds of them at one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from expunge.errors import InputError


@dataclass(frozen=True)
class Rewire:
    """Neurons given up for new ones.

    With h = gate x + bias a new one says act(h), or act(h) times (factor h + constant) in an MLP
    that has something beside its gate, and `down` writes it out.

    Attributes:
        index: Which neurons, sorted int64 [k].
        gate: Rows into the activation function, [k, in].
        bias: What is added there, [k].
        factor: [k]; [0] for an MLP with nothing beside its gate.
        down: What each new neuron adds at 1, [out, k].
        pool: Neurons that could be given up, sorted int64, `index` among them: where two plans
            want the same ones, both move within their pools.
        constant: [k], or [0] where it is 0 everywhere.
    """

    index: Tensor
    gate: Tensor
    bias: Tensor
    factor: Tensor
    down: Tensor
    pool: Tensor
    constant: Tensor = field(default_factory=lambda: torch.zeros(0))

    NAMES = {
        "rewired": "index",
        "gate": "gate",
        "bias": "bias",
        "factor": "factor",
        "down": "down",
        "pool": "pool",
        "constant": "constant",
    }

    @property
    def biased(self) -> bool:
        """Whether any row needs a bias."""
        return bool(self.bias.any() or self.constant.any())

    @property
    def inner(self) -> list[tuple[Tensor, Tensor]]:
        """Rows [k, in] and biases [k] of the maps into the hidden units: of the gate, beside it."""
        rows = [(self.gate, self.bias)]
        if len(self.factor):
            added = self.factor * self.bias + self._constants()
            rows.append((self.factor[:, None] * self.gate, added))
        return rows

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names they have in a plan file."""
        named: dict[str, Tensor] = {}
        for name, part in self.NAMES.items():
            value: Tensor = getattr(self, part)
            if name != "constant" or len(value):
                named[name] = value if value.is_floating_point() else value.to(torch.int32)
        return named

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Rewire:
        """The inverse of `tensors`; a `KeyError` where one is missing."""
        held = {n: p for n, p in cls.NAMES.items() if n != "constant" or n in named}
        parts = {part: named[name] for name, part in held.items()}
        whole = {p: t if t.is_floating_point() else t.long() for p, t in parts.items()}
        return cls(**whole)

    def join(self, other: Rewire) -> Rewire:
        """The new neurons of both, ordered by what they are, in the first places of both pools.

        Raises:
            InputError: Fewer can be given up than both need.
        """
        pool = torch.cat([self.pool, other.pool]).unique()
        gate = torch.cat([self.gate, other.gate])
        bias = torch.cat([self.bias, other.bias])
        factor = torch.cat([self.factor, other.factor])
        constant = torch.cat([self._constants(), other._constants()])
        down = torch.cat([self.down, other.down], 1)
        if len(gate) > len(pool):
            raise InputError(
                f"together the plans need {len(gate)} neurons of a site, but only {len(pool)} can"
                " be given up there; apply one of them, and make the other for the edited model"
            )
        rows = torch.cat([gate, bias[:, None], down.T], 1).double().tolist()
        order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.int64)
        return Rewire(
            pool[: len(order)],
            gate[order],
            bias[order],
            factor[order] if len(factor) else factor,
            down[:, order],
            pool,
            constant[order] if bool(constant.any()) else constant[:0],
        )

    def _constants(self) -> Tensor:
        """`constant` with its zeros."""
        return self.constant if len(self.constant) else torch.zeros_like(self.bias)
