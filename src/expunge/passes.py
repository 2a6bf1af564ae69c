"""Second moments by groups of sites, a pass over the data for each, under a stated limit."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from expunge.errors import InputError
from expunge.sites import Site
from expunge.sketch import Sketch, rows_held
from expunge.stats import Moment

Name = tuple[str, str]
"""(set, condition)."""
Reach = Mapping[Name, Sequence[Site]]
Sums = Mapping[str, Moment]
FLOAT64 = 8
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def groups_within(
    limit: int, sites: Sequence[Site], reach: Reach, beside: int, sketch: int | None = None
) -> list[list[Site]]:
    """Divide sites, in their order, into few groups whose second moments fit a limit.

    Args:
        limit: Bytes that may be held.
        sites: Those that get second moments.
        reach: (set, condition) -> sites it reaches: each of these that get any has one there.
        beside: Bytes held besides the second moments.
        sketch: Size of sketches that are held instead; None is none.

    Raises:
        InputError: Not even the largest site fits; the message names the least limit.
    """
    count = dict.fromkeys((s.key for s in sites), 0)
    for reached in reach.values():
        for site in reached:
            if site.key in count:
                count[site.key] += 1
    rows = {s.key: rows_held(s.width, sketch) for s in sites}
    sizes = {s.key: count[s.key] * FLOAT64 * s.width * rows[s.key] for s in sites}
    largest = max(sites, key=lambda s: sizes[s.key])
    least = beside + sizes[largest.key]
    if least > limit:
        raise InputError(
            f"memory is {shown(limit)}, but site {largest.key} alone needs {shown(least)}:"
            f" {count[largest.key]} second moments of {rows[largest.key]} x {largest.width}"
            " numbers, and what is worked out of them; give that much, fewer --towers, a --sketch,"
            " or a method without second moments such as manu"
        )
    groups: list[list[Site]] = [[]]
    used = beside
    for site in sites:
        if used + sizes[site.key] > limit:
            groups.append([])
            used = beside
        groups[-1].append(site)
        used += sizes[site.key]
    return groups


def shown(number: int) -> str:
    """Bytes as `config.bytes_of` reads them, rounded up."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << power:
            return f"{-(-number * 100 // (1 << power)) / 100:g}{unit}"
    return f"{number}B"


def free_memory(device: torch.device) -> int:
    """Bytes that are free where a model is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def return_freed_blocks() -> None:
    """Have the C library (glibc) hand blocks over 1 MiB back to the system when they are freed.

    By default it keeps blocks of up to 32 MiB for itself, which adds a quarter to the peak.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if tune is not None:
        tune(MMAP_THRESHOLD, 1 << 20)


class Passes(Mapping[Name, Sums]):
    """(set, condition) -> site key -> second moment, of which one group of sites is held.

    Asking for a site of another group lets go of the one that is held and runs the data again, so
    whoever reads everything goes site by site. The first group is collected at once.

    Args:
        reach: (set, condition) -> sites it reaches.
        groups: Sites that are held together.
        collect: Runs a set under a condition and sums at some of the sites it reaches.

    Attributes:
        ran: The groups that were run so far, each as often as it was.
        error: Largest relative error of the sketches held so far; 0 without any.
    """

    def __init__(
        self,
        reach: Reach,
        groups: Sequence[Sequence[Site]],
        collect: Callable[[Name, Sequence[Site]], Sums],
    ) -> None:
        self.groups = groups
        self._reach, self._collect = reach, collect
        self._group = {site.key: i for i, group in enumerate(groups) for site in group}
        self._found: dict[Name, Sums] = {}
        self.ran: list[Sequence[Site]] = []
        self.error = 0.0
        if len(groups) > 1:
            return_freed_blocks()
        self._hold(0)

    def _hold(self, index: int) -> None:
        self._held = index
        self._found.clear()
        self.ran.append(self.groups[index])
        for name, reached in self._reach.items():
            keys = {s.key for s in reached}
            chosen = [s for s in self.groups[index] if s.key in keys]
            self._found[name] = self._collect(name, chosen) if chosen else {}
            for each in self._found[name].values():
                if isinstance(each, Sketch):
                    self.error = max(self.error, each.relative_error)

    def let_go(self) -> None:
        """Hold nothing any more; whoever asks again has the data run again."""
        self._held = -1
        self._found.clear()

    def at(self, name: Name, key: str) -> Moment:
        """The second moment of a site, collected with its group where that is not held."""
        if self._group[key] != self._held:
            self._hold(self._group[key])
        return self._found[name][key]

    def __getitem__(self, name: Name) -> Sums:
        return _Sums(self, name, dict.fromkeys(s.key for s in self._reach[name]))

    def __iter__(self) -> Iterator[Name]:
        return iter(self._reach)

    def __len__(self) -> int:
        return len(self._reach)


@dataclass(frozen=True)
class _Sums(Mapping[str, Moment]):
    """What `Passes` has under one set and condition."""

    passes: Passes
    name: Name
    sites: Mapping[str, None]

    def __getitem__(self, key: str) -> Moment:
        if key not in self.sites:
            raise KeyError(key)
        return self.passes.at(self.name, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)
