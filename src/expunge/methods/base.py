"""What every method has in common: what it needs, what it is given, what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from expunge.config import RunConfig
from expunge.plan import SiteEdit
from expunge.stats import NeuronStats, SecondMoment


class SiteLike(Protocol):
    """The part of a site that methods look at."""

    @property
    def key(self) -> str:
        """Site key such as `language.3`."""

    @property
    def path(self) -> str:
        """Module path of the down projection."""

    @property
    def tower(self) -> str:
        """Tower the site is in."""

    @property
    def width(self) -> int:
        """Number of neurons."""


@dataclass
class Evidence:
    """Everything a method may look at.

    Attributes:
        sites: The live sites of the chosen towers, in order.
        neurons: (set, condition) -> site key -> statistics; set is `forget` or `retain`.
        moments: (set, condition) -> site key -> second moment.
        weight: Returns the down projection of a site, [out, width].
    """

    sites: Sequence[SiteLike]
    neurons: Mapping[tuple[str, str], Mapping[str, NeuronStats]] = field(default_factory=dict)
    moments: Mapping[tuple[str, str], Mapping[str, SecondMoment]] = field(default_factory=dict)
    weight: Callable[[str], Tensor] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a method decided: edits by site key, and the scores behind them."""

    edits: Mapping[str, SiteEdit]
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Attributes:
        name: Name on the command line.
        about: One line.
        decide: Evidence and configuration -> outcome.
        neurons: Needs neuron statistics.
        moments: Needs second moments.
        towers: Towers it edits unless told otherwise.
        budget: Default budget, or None if it has none.
        strength: Default strength, or None.
    """

    name: str
    about: str
    decide: Callable[[Evidence, RunConfig], Outcome]
    neurons: bool = False
    moments: bool = False
    towers: tuple[str, ...] = ("vision", "language")
    budget: float | None = None
    strength: float | None = None


def pruned(selection: Mapping[str, Tensor]) -> dict[str, SiteEdit]:
    """Prune the selected neurons."""
    return {key: SiteEdit(prune=index) for key, index in selection.items()}


def stats_of(evidence: Evidence, data: str, condition: str, key: str) -> NeuronStats | None:
    """Neuron statistics of a site, or None where the condition never reaches it."""
    found = evidence.neurons.get((data, condition), {}).get(key)
    return found if found is not None and found.count else None
