"""Neuron importances: pure functions of statistics (METHODS: arXiv 2502.15910, 2403.01267)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from expunge.errors import InputError, unknown
from expunge.stats import NeuronStats

EPS = 1e-6


def _contrast(multi: Tensor, text: Tensor, eps: float) -> Tensor:
    return (multi - text).abs() / (multi + text + eps)


def absolute_importance(multi: NeuronStats, text: NeuronStats, eps: float = EPS) -> Tensor:
    """I_abs: contrast of the mean |z| between conditions, float64 [width] in [0, 1)."""
    return _contrast(multi.mean_abs, text.mean_abs, eps)


def frequency_importance(multi: NeuronStats, text: NeuronStats, eps: float = EPS) -> Tensor:
    """I_freq: contrast of the share of units with |z| > tau, float64 [width] in [0, 1)."""
    return _contrast(multi.share_over, text.share_over, eps)


def variance_importance(multi: NeuronStats, text: NeuronStats, eps: float = EPS) -> Tensor:
    """I_var: root of the summed spreads about mean |z|, float64 [width], in units of z."""
    return (multi.variance_about_mean_abs + text.variance_about_mean_abs).sqrt()


def rms_importance(multi: NeuronStats, text: NeuronStats, eps: float = EPS) -> Tensor:
    """I_rms: root of the contrast of the energies, float64 [width] in [0, 1)."""
    return _contrast(multi.mean_square, text.mean_square, eps).sqrt()


IMPORTANCE: dict[str, Callable[[NeuronStats, NeuronStats, float], Tensor]] = {
    "abs": absolute_importance,
    "freq": frequency_importance,
    "var": variance_importance,
    "rms": rms_importance,
}


def manu_importance(
    multi: NeuronStats,
    text: NeuronStats | None,
    weights: Mapping[str, float] | None = None,
    eps: float = EPS,
) -> Tensor:
    """Sum of the four importances of MANU (arXiv 2502.15910), or a weighted subset.

    Args:
        multi: Statistics with image and text.
        text: Statistics with text only; None for a neuron that text never reaches (vision,
            connector), whose text statistics are zero.
        weights: Importance name -> weight; None is each of the four with weight 1.
        eps: Added to denominators.

    Returns:
        Importance of every neuron, float64 [width].
    """
    weights = dict.fromkeys(IMPORTANCE, 1.0) if weights is None else weights
    silent = NeuronStats.zeros(multi.total.numel(), multi.tau, multi.total.device)
    terms = []
    for name, weight in weights.items():
        if name not in IMPORTANCE:
            raise unknown("importance", name, IMPORTANCE)
        terms.append(weight * IMPORTANCE[name](multi, text or silent, eps))
    if not terms:
        raise InputError("no importance chosen, expected at least one of abs, freq, var, rms")
    return sum(terms[1:], terms[0])


def ratio(forget: Tensor, retain: Tensor, eps: float = EPS) -> Tensor:
    """Score S = I(forget) / (I(retain) + eps), float64 [width]."""
    return forget / (retain + eps)
