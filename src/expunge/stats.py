"""Streaming sums over neuron activations, kept in float64, exact under merging."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import InputError

NEURON_FIELDS = ("total", "absolute", "over", "square")
BLOCK = 8 << 20
"""Bytes of a block of rows in float64, of which two are held while they are summed."""
LARGE = 1 << 20
"""Numbers from which on compiled loops are worth their compilation."""
MIXED = torch.version.hip is None and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether torch multiplies half precisions into float32 on a CUDA device."""
PANELS, NARROW = 6, 256
"""A second moment is summed in so many panels, none narrower than this."""


@dataclass
class NeuronStats:
    """Per-neuron sums over counted units of one data set under one modality condition.

    Attributes:
        count: Number of units (tokens, or examples) summed.
        total: Sum of z, float64 [width].
        absolute: Sum of |z|, float64 [width].
        over: Number of units with |z| > tau, float64 [width].
        square: Sum of z^2, float64 [width].
        tau: Threshold of `over`.
    """

    count: int
    total: Tensor
    absolute: Tensor
    over: Tensor
    square: Tensor
    tau: float = 0.1

    @classmethod
    def zeros(cls, width: int, tau: float = 0.1, device: torch.device | str = "cpu") -> NeuronStats:
        """Statistics of nothing, for a site of `width` neurons."""
        # MPS-like devices have no float64; the sums then live on the CPU.
        total, absolute, over, square = torch.zeros(4, width, dtype=torch.float64, device=device)
        return cls(0, total, absolute, over, square, tau)

    def update(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        times: int = 1,
        places: Tensor | None = None,
    ) -> None:
        """Add activations.

        Args:
            z: Activations, any float dtype, [..., width].
            mask: Which positions count, bool [...]; None counts all.
            times: How often each counts.
            places: Instead of a mask, which rows of z [rows, width] count, int64 [n].
        """
        rows, places = counted(z, mask, places, self.total.numel())
        number = len(rows) if places is None else len(places)
        self.count += number * times
        if not number:
            return
        once = _reading_once(rows, number)
        if once is not None:
            kept = [getattr(self, name) for name in NEURON_FIELDS]
            torch._foreach_add_(kept, list(once(rows, self.tau, places)), alpha=times)
            return
        size = max(1, min(number, BLOCK // (8 * rows.shape[1])))
        scratch = torch.empty(2, size, rows.shape[1], dtype=torch.float64, device=rows.device)
        for part in (rows if places is None else places).split(size):
            exact, active = scratch[:, : len(part)]
            block = part if places is None else rows.index_select(0, part)
            self._add(block, exact, active, times)

    def _add(self, rows: Tensor, exact: Tensor, active: Tensor, times: int) -> None:
        """Add rows [n, width] by products with ones, the fastest sums; overwrites the others."""
        weight = exact.new_full((len(rows),), times)
        self.total.addmv_(exact.copy_(rows).T, weight)
        self.absolute.addmv_(exact.abs_().T, weight)
        self.over.addmv_(torch.gt(exact, self.tau, out=active).T, weight)
        self.square.addmv_(exact.square_().T, weight)

    @property
    def mean_abs(self) -> Tensor:
        """Mean of |z|, zero where nothing was counted."""
        return self.absolute / max(self.count, 1)

    @property
    def share_over(self) -> Tensor:
        """Share of units with |z| > tau."""
        return self.over / max(self.count, 1)

    @property
    def mean_square(self) -> Tensor:
        """Mean of z^2."""
        return self.square / max(self.count, 1)

    @property
    def variance_about_mean_abs(self) -> Tensor:
        """Mean of (z - mean|z|)^2, the V of MANU as printed (arXiv 2502.15910)."""
        n, centre = max(self.count, 1), self.mean_abs
        return (self.square / n - 2 * centre * self.total / n + centre**2).clamp_min(0.0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of z (population)."""
        n = max(self.count, 1)
        return (self.square / n - (self.total / n) ** 2).clamp_min(0.0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file."""
        named = {name: getattr(self, name).cpu() for name in NEURON_FIELDS}
        named["count"] = torch.tensor(self.count, dtype=torch.int64)
        named["tau"] = torch.tensor(self.tau, dtype=torch.float64)
        return named

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> NeuronStats:
        """The inverse of `tensors`."""
        total, absolute, over, square = (named[name] for name in NEURON_FIELDS)
        return cls(int(named["count"]), total, absolute, over, square, float(named["tau"]))

    def merge(self, other: NeuronStats) -> NeuronStats:
        """Statistics of both data sets together."""
        if self.tau != other.tau or self.total.shape != other.total.shape:
            raise InputError(
                f"statistics of width {self.total.numel()}, tau {self.tau} cannot be merged with"
                f" width {other.total.numel()}, tau {other.tau}"
            )
        total, absolute, over, square = (
            getattr(self, name) + getattr(other, name) for name in NEURON_FIELDS
        )
        return NeuronStats(self.count + other.count, total, absolute, over, square, self.tau)

    def all_reduce(self) -> None:
        """Add up over the processes of the default group, in place."""
        for name in NEURON_FIELDS:
            torch.distributed.all_reduce(getattr(self, name))
        self.count = _reduced_count(self.count, self.total.device)


@dataclass
class Moment(ABC):
    """An uncentred second moment of a site's activations, however it is held.

    Attributes:
        count: Number of units summed.
    """

    count: int

    @property
    @abstractmethod
    def width(self) -> int:
        """Neurons of the site."""

    @property
    @abstractmethod
    def outer(self) -> Tensor:
        """Sum of z z^T, [width, width]."""

    @abstractmethod
    def all_reduce(self) -> None:
        """Add up over the processes of the default group, in place."""

    @abstractmethod
    def _add(self, rows: Tensor, times: int) -> None:
        """Add rows [n, width], each so many times."""

    def update(
        self,
        z: Tensor,
        mask: Tensor | None = None,
        times: int = 1,
        places: Tensor | None = None,
    ) -> None:
        """Add activations; the arguments are those of `NeuronStats.update`.

        What makes the model's products less precise makes none of these so.
        """
        rows, places = counted(z, mask, places, self.width)
        rows = rows if places is None else rows.index_select(0, places)
        self.count += len(rows) * times
        with torch.autocast(rows.device.type, enabled=False):
            self._add(rows, times)


@dataclass
class SecondMoment(Moment):
    """The whole matrix.

    Products are made in the activations' own precision; those of half precisions are exact in
    float32, in which they are summed.

    Attributes:
        count: Number of units summed.
        upper: The sum, [width, width]; float64 unless asked otherwise. What is below the diagonal
            may be missing; read `outer`.
        whole: Whether nothing is missing.
    """

    upper: Tensor
    whole: bool = True

    @classmethod
    def zeros(
        cls,
        width: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> SecondMoment:
        """The moment of nothing, for a site of `width` neurons."""
        return cls(0, torch.zeros(width, width, dtype=dtype, device=device))

    @property
    def width(self) -> int:
        """Neurons of the site."""
        return len(self.upper)

    def _add(self, rows: Tensor, times: int) -> None:
        for begin, end in self._panels():
            product = _product(rows[:, begin:end].T, rows[:, begin:])
            self.upper[begin:end, begin:].add_(product, alpha=times)
        self.whole = False

    def _panels(self) -> list[tuple[int, int]]:
        """Where each panel of rows begins and ends."""
        each = max(NARROW, -(-self.width // PANELS // 64) * 64)
        return [(at, min(at + each, self.width)) for at in range(0, self.width, each)]

    @property
    def outer(self) -> Tensor:
        """Sum of z z^T, [width, width]; the same memory every time."""
        if not self.whole:
            with torch.inference_mode():  # in which it may have been summed
                for begin, end in self._panels():
                    self.upper[end:, begin:end] = self.upper[begin:end, end:].T
            self.whole = True
        return self.upper

    @property
    def mean(self) -> Tensor:
        """Mean of z z^T, [width, width]; zeros where nothing was counted."""
        return self.outer / max(self.count, 1)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file."""
        return {"outer": self.outer.cpu(), "count": torch.tensor(self.count, dtype=torch.int64)}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> SecondMoment:
        """The inverse of `tensors`."""
        return cls(int(named["count"]), named["outer"])

    def merge(self, other: SecondMoment) -> SecondMoment:
        """The moment of both data sets together."""
        if self.outer.shape != other.outer.shape:
            raise InputError(
                f"second moments of width {len(self.outer)} and {len(other.outer)} cannot be merged"
            )
        return SecondMoment(self.count + other.count, self.outer + other.outer)

    def all_reduce(self) -> None:
        """Add up over the processes of the default group, in place."""
        torch.distributed.all_reduce(self.outer)
        self.count = _reduced_count(self.count, self.outer.device)


def _reading_once(rows: Tensor, number: int) -> Callable[..., Tensor] | None:
    """What sums so many of the rows in one reading, if something here does and it pays."""
    if rows.device.type == "cuda" and rows.dtype != torch.float64 and _installed("triton"):
        from expunge.kernels import neuron_sums

        return neuron_sums
    if rows.device.type == "cpu" and number * rows.shape[1] >= LARGE and _installed("numba"):
        from expunge.loops import neuron_sums

        return neuron_sums
    return None


@functools.cache
def _installed(name: str) -> bool:
    """Whether a library is there: Triton comes with torch for CUDA, Numba when asked for."""
    return importlib.util.find_spec(name) is not None


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product, of half precisions in float32."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.device.type == "cuda" and MIXED:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def counted(
    z: Tensor, mask: Tensor | None, places: Tensor | None, width: int
) -> tuple[Tensor, Tensor | None]:
    """Activations as rows [n, width], and which of them count, int64 [m]; None is all."""
    if z.shape[-1] != width:
        raise InputError(f"activations of width {z.shape[-1]} given, the site has {width} neurons")
    rows = z.reshape(-1, width)
    if mask is None:
        return rows, places
    if mask.shape != z.shape[:-1] or mask.dtype != torch.bool:
        raise InputError(
            f"the mask is {mask.dtype} of shape {tuple(mask.shape)}, expected bool of shape"
            f" {tuple(z.shape[:-1])}"
        )
    return rows, torch.nonzero(mask.flatten())[:, 0]


def _reduced_count(count: int, device: torch.device) -> int:
    total = torch.tensor(count, dtype=torch.int64, device=device)
    torch.distributed.all_reduce(total)
    return int(total)


def save_stats(
    path: Path, stats: Mapping[str, NeuronStats | SecondMoment], metadata: Mapping[str, str]
) -> None:
    """Write the statistics of many sites to one safetensors file (temporary name, then renamed)."""
    named = {
        f"{key}/{n}": t.contiguous() for key, s in stats.items() for n, t in s.tensors().items()
    }
    temporary = path.with_name(path.name + ".partial")
    save_file(named, temporary, dict(metadata))
    temporary.replace(path)


def load_stats(
    path: Path,
) -> tuple[dict[str, NeuronStats] | dict[str, SecondMoment], dict[str, str]]:
    """Read what `save_stats` wrote: statistics by site key, and the metadata."""
    sites: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            key, field = name.rsplit("/", 1)
            sites.setdefault(key, {})[field] = file.get_tensor(name)
        metadata = file.metadata() or {}
    if any("outer" in named for named in sites.values()):
        return {k: SecondMoment.from_tensors(named) for k, named in sites.items()}, metadata
    return {k: NeuronStats.from_tensors(named) for k, named in sites.items()}, metadata
