"""Membership inference: scores that are larger for data the model was trained on, and their AUC.

The sign is the same everywhere: larger means member. Unlearning succeeded where the AUC of the
forget set against matched never-seen subjects is near gold's, not where it is low.
"""

import math
from collections.abc import Iterable
from zlib import compress

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError
from expunge.metrics.checks import log_probabilities, vector

SIGMA_FLOOR = 1e-6


def loss(token_logp: ArrayLike) -> float:
    """LOSS score, -l: the mean log-probability of the answer's tokens, shape `(L,)`.

    Raises:
        InputError: No token, NaN, or a value above 0.
    """
    return float(log_probabilities("token_logp", token_logp).mean())


def zlib(token_logp: ArrayLike, text: str) -> float:
    """ZLIB score: -l divided by the bytes zlib needs for the text (arXiv 2012.07805).

    Args:
        token_logp: Log-probabilities of the answer's tokens, shape `(L,)`.
        text: The answer the tokens spell; compressed as UTF-8 at zlib's default level.

    Raises:
        InputError: No token, NaN, or a value above 0.
    """
    return loss(token_logp) / len(compress(text.encode("utf-8")))


def min_k(token_logp: ArrayLike, share: float = 0.2) -> float:
    """Min-K% score: mean of the lowest `share` of the token log-probabilities (arXiv 2310.16789).

    Args:
        token_logp: Log-probabilities of the answer's tokens, shape `(L,)`.
        share: Share of tokens to keep, in (0, 1]; rounded down, but at least one token.

    Raises:
        InputError: No token, NaN, a value above 0, or `share` out of range.
    """
    return _lowest_mean(log_probabilities("token_logp", token_logp), share)


def min_k_plus_plus(
    token_logp: ArrayLike, mu: ArrayLike, sigma: ArrayLike, share: float = 0.2
) -> float:
    """Min-K%++ score: `min_k` of (log p - mu) / sigma (arXiv 2404.02936).

    Args:
        token_logp: Log-probabilities of the answer's tokens, shape `(L,)`.
        mu: Per position, mean of log p over the vocabulary weighted by the model's own next-token
            probabilities, shape `(L,)`.
        sigma: The standard deviation of the same, shape `(L,)`; taken as at least `SIGMA_FLOOR`,
            so that a position where the model is certain stays finite.
        share: As in `min_k`.

    Raises:
        InputError: As `min_k`; lengths that differ; mu or sigma not finite; a negative sigma.
    """
    logp = log_probabilities("token_logp", token_logp)
    mean, deviation = vector("mu", mu), vector("sigma", sigma)
    if not len(logp) == len(mean) == len(deviation):
        raise InputError(
            f"found {len(logp)} token_logp, {len(mean)} mu and {len(deviation)} sigma, expected "
            "one of each per answer token"
        )
    if deviation.min() < 0:
        raise InputError(f"sigma: found {deviation.min():g}, expected 0 or more")
    return _lowest_mean((logp - mean) / np.maximum(deviation, SIGMA_FLOOR), share)


def grad_norm(gradients: Iterable[ArrayLike]) -> float:
    """GradNorm score: minus the Euclidean norm of the gradient of l over all parameters.

    Args:
        gradients: One array of any shape per parameter.
    """
    squares = (float(np.sum(np.square(np.asarray(g, dtype=np.float64)))) for g in gradients)
    return -math.sqrt(math.fsum(squares))


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Chance that a random member scores above a random non-member, ties counting half.

    Args:
        members: Scores of the forget set, larger meaning member, shape `(n,)`.
        non_members: Scores of matched subjects no model saw, shape `(m,)`.

    Returns:
        The area under the ROC curve in [0, 1]; 0.5 where they cannot be told apart.

    Raises:
        InputError: Either side empty, or NaN.
    """
    inside = vector("members", members, finite=False)
    outside = np.sort(vector("non_members", non_members, finite=False))
    below = np.searchsorted(outside, inside, side="left")
    not_above = np.searchsorted(outside, inside, side="right")
    return float((below + not_above).sum() / (2 * len(inside) * len(outside)))


def privleak(auc_u: float, auc_gold: float | None) -> float | None:
    """PrivLeak in percent: 100 ((1 - AUC_u) - (1 - AUC_gold)) / (1 - AUC_gold) (MUSE).

    Args:
        auc_u: AUC of the unlearned model, forget against never-seen.
        auc_gold: AUC of gold on the same data, or None without a gold model.

    Returns:
        0 at gold; below 0 membership still shows; above 0 the forget set stands out the other way.
        None without gold, or where gold's AUC is 1 and leaves nothing to divide by.

    Raises:
        InputError: An AUC outside [0, 1].
    """
    for name, value in (("auc_u", auc_u), ("auc_gold", auc_gold)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{name}: found {value:g}, expected 0 to 1")
    if auc_gold is None or auc_gold == 1.0:
        return None
    return 100.0 * ((1.0 - auc_u) - (1.0 - auc_gold)) / (1.0 - auc_gold)


def _lowest_mean(values: NDArray[np.float64], share: float) -> float:
    if not 0.0 < share <= 1.0:
        raise InputError(f"share: found {share:g}, expected above 0 and at most 1")
    count = max(1, math.floor(share * len(values) + 1e-9))
    return float(np.sort(values)[:count].mean())
