"""A second moment in few rows: Frequent Directions (Ghashami et al., SIAM J. Comput. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import InputError
from expunge.stats import Moment, SecondMoment


@dataclass
class Sketch(Moment):
    """The sum of z z^T within a known error, in twice `size` rows instead of width rows.

    Activations are rows of a buffer. When it is full, the energy of its (size + 1)-th direction is
    taken from every direction, which leaves `size` rows, and counted in `lost`. The sum is then the
    buffer's own plus between nothing and `lost` in every direction; half of it is taken everywhere
    (Luo et al., JMLR 2019), so that `outer` is off by at most `error` in any.

    Attributes:
        count: Number of units summed.
        rows: The buffer, float64 [2 size, width]; the first `filled` hold something.
        filled: How many.
        lost: Energy taken from every direction so far.
    """

    rows: Tensor
    filled: int = 0
    lost: float = 0.0

    @classmethod
    def zeros(cls, width: int, size: int, device: torch.device | str = "cpu") -> Sketch:
        """The sketch of nothing, for a site of `width` neurons."""
        return cls(0, torch.zeros(2 * size, width, dtype=torch.float64, device=device))

    @property
    def width(self) -> int:
        """Neurons of the site."""
        return self.rows.shape[1]

    def _add(self, rows: Tensor, times: int = 1) -> None:
        while len(rows):
            free = len(self.rows) - self.filled
            part, rows = rows[:free], rows[free:]
            self.rows[self.filled : self.filled + len(part)] = part.double() * times**0.5
            self.filled += len(part)
            if self.filled == len(self.rows):
                self._shrink()

    def _shrink(self) -> None:
        size = len(self.rows) // 2
        energy, turn = torch.linalg.eigh(self.rows @ self.rows.T)
        energy, turn = energy.flip(0).clamp_min(0), turn.flip(1)
        taken = energy[size]
        kept = ((energy[:size] - taken).clamp_min(0) / energy[:size].clamp_min(1e-300)).sqrt()
        self.rows[:size] = kept[:, None] * (turn[:, :size].T @ self.rows)
        self.rows[size:] = 0
        self.filled, self.lost = size, self.lost + float(taken)

    @property
    def outer(self) -> Tensor:
        """Sum of z z^T to within `error`, float64 [width, width]; made anew every time."""
        held = self.rows[: self.filled]
        whole = held.T @ held
        whole.diagonal().add_(self.error)
        return whole

    @property
    def error(self) -> float:
        """The most by which `outer` is off in the energy of any direction (spectral norm)."""
        return self.lost / 2

    @property
    def relative_error(self) -> float:
        """The error against the energy of the leading direction; 0 where nothing was summed."""
        held = self.rows[: self.filled]
        most = float(torch.linalg.eigvalsh(held @ held.T)[-1]) if self.filled else 0.0
        return self.error / (most + self.error) if most else 0.0

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both data sets together; the errors add up."""
        if self.rows.shape != other.rows.shape:
            raise InputError(
                f"sketches of {tuple(self.rows.shape)} and {tuple(other.rows.shape)} rows and"
                " neurons cannot be merged"
            )
        both = Sketch(self.count + other.count, self.rows.clone(), self.filled, self.lost)
        both._add(other.rows[: other.filled])
        both.lost += other.lost
        return both

    def all_reduce(self) -> None:
        """Merge over the processes of the default group, in place, in their order."""
        about = torch.tensor(
            [self.count, self.filled, self.lost], dtype=torch.float64, device=self.rows.device
        )
        world = torch.distributed.get_world_size()
        told = [torch.empty_like(about) for _ in range(world)]
        held = [torch.empty_like(self.rows) for _ in range(world)]
        torch.distributed.all_gather(told, about)
        torch.distributed.all_gather(held, self.rows)
        whole = Sketch(0, torch.zeros_like(self.rows))
        for (count, filled, lost), rows in zip((t.tolist() for t in told), held, strict=True):
            whole = whole.merge(Sketch(int(count), rows, int(filled), lost))
        self.count, self.rows = whole.count, whole.rows
        self.filled, self.lost = whole.filled, whole.lost


def rows_held(width: int, sketch: int | None) -> int:
    """Rows in which a second moment is held: those of a sketch, where that is smaller."""
    return min(width, 2 * sketch) if sketch else width


def empty(width: int, sketch: int | None, device: torch.device) -> Moment:
    """The moment of nothing, for a site of `width` neurons; see `rows_held`."""
    if sketch and rows_held(width, sketch) < width:
        return Sketch.zeros(width, sketch, device)
    return SecondMoment.zeros(width, device)
