"""Which experts of a mixture the forget and the retain set were routed to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.methods.base import ASIDE, Evidence

Routed = dict[str, dict[str, dict[str, list[int]]]]


def routed(evidence: Evidence) -> Routed:
    """Count what each expert was given.

    Args:
        evidence: Statistics of neurons or second moments; folds of a set count as the set.

    Returns:
        Layer (`language.3`) -> set -> condition -> units routed to each expert, in their order;
        empty without mixtures of experts.
    """
    layers: dict[str, list[str]] = {}
    for site in evidence.sites:
        layer, expert, _ = site.key.partition(".expert.")
        if expert:
            layers.setdefault(layer, []).append(site.key)
    found: Routed = {}
    for (name, condition), measured in _counted(evidence).items():
        for layer, keys in layers.items():
            whole = "retain" if name == ASIDE else name.split()[0]
            sets = found.setdefault(layer, {}).setdefault(whole, {})
            before = sets.get(condition, [0] * len(keys))
            counts = (measured[key].count if key in measured else 0 for key in keys)
            sets[condition] = [a + int(b) for a, b in zip(before, counts, strict=True)]
    return found


def _counted(evidence: Evidence) -> Mapping[tuple[str, str], Mapping[str, Any]]:
    return evidence.neurons if any(evidence.neurons.values()) else evidence.moments
