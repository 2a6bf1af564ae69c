"""From scores to neurons: one ranking over all sites, or one per tower."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.errors import InputError


def check_budget(budget: float) -> float:
    """Return `budget` if it is a share between 0 and 1, else raise `InputError`."""
    if not (isinstance(budget, int | float) and 0.0 <= budget <= 1.0):
        raise InputError(
            f"budget is {budget}, expected a share of the neurons between 0 and 1 (0.02 is 2 %)"
        )
    return float(budget)


def select(
    scores: Mapping[str, Tensor], budget: float, *, per_tower: bool = False
) -> dict[str, Tensor]:
    """Choose the highest-scoring neurons.

    Args:
        scores: Site key -> score [width]; the order of the mapping breaks ties, then the index.
        budget: Share of all neurons to choose; floor(budget * neurons) are chosen.
        per_tower: Rank each tower (the part of the key before the first dot) by itself.

    Returns:
        Site key -> sorted indices, int64; sites with none are left out.

    Raises:
        InputError: A budget outside [0, 1] or a score that is not a number.
    """
    check_budget(budget)
    groups: dict[str, list[str]] = {}
    for key in scores:
        groups.setdefault(key.split(".")[0] if per_tower else "", []).append(key)
    chosen: dict[str, Tensor] = {}
    for keys in groups.values():
        chosen |= _top({k: scores[k] for k in keys}, budget)
    return {key: chosen[key] for key in scores if key in chosen}


def _top(scores: Mapping[str, Tensor], budget: float) -> dict[str, Tensor]:
    bad = [key for key, score in scores.items() if bool(torch.isnan(score).any())]
    if bad:
        raise InputError(f"scores of site {bad[0]} are not numbers; were its activations finite?")
    everything = torch.cat([s.detach().to("cpu", torch.float64) for s in scores.values()])
    number = math.floor(budget * everything.numel() + 1e-9)
    top = torch.sort(everything, descending=True, stable=True).indices[:number]
    chosen, start = {}, 0
    for key, score in scores.items():
        inside = top[(top >= start) & (top < start + score.numel())] - start
        if inside.numel():
            chosen[key] = inside.sort().values
        start += score.numel()
    return chosen
