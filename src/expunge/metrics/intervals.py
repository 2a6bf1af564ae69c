"""How sure a mean is: bootstrap over subjects, since one subject's questions go together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError
from expunge.metrics.checks import same_length, vector

_BLOCK = 4_000_000


def bootstrap_ci(
    values: ArrayLike,
    groups: Sequence[Any],
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, drawing whole subjects with replacement.

    A resample draws as many subjects as there are and takes the mean over all of their questions.
    The result does not depend on the order of the rows beyond rounding.

    Args:
        values: One score per question, shape `(n,)`.
        groups: The subject of each question, all strings or all numbers.
        n_resamples: Number of resamples.
        seed: Seed of the draw; one seed gives one interval.
        level: Coverage in (0, 1).

    Returns:
        `(low, high)`. With one subject, or where all subjects have one and the same mean, both are
        that mean, which then says nothing of how sure it is.

    Raises:
        InputError: Empty or unequal lengths, a value that is not finite, a setting out of range.
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"level: found {level:g}, expected between 0 and 1, such as 0.95")
    means = _resampled_means(vector("values", values), groups, n_resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    values_a: ArrayLike,
    values_b: ArrayLike,
    groups: Sequence[Any],
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference of two models on the same questions, by bootstrap over subjects.

    Args:
        values_a: One score per question of the first model, shape `(n,)`.
        values_b: The same questions under the second model.
        groups: The subject of each question, all strings or all numbers.
        n_resamples: Number of resamples.
        seed: Seed of the draw.

    Returns:
        `difference`: mean of a less mean of b; `ci95`: `[low, high]`, its percentile interval; `p`:
        two-sided, twice the share of resamples on or beyond the other side of 0, counting the
        data themselves once, so never below 2 / (n_resamples + 1) and at most 1.

    Raises:
        InputError: Empty or unequal lengths, a value that is not finite, a setting out of range.
    """
    a, b = same_length("values_a", values_a, "values_b", values_b)
    difference = a - b
    means = _resampled_means(difference, groups, n_resamples, seed)
    rounding = 1e-12 * float(np.abs(difference).max())
    sides = np.sum(means <= rounding), np.sum(means >= -rounding)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(difference.mean()),
        "ci95": [float(low), float(high)],
        "p": min(1.0, 2.0 * (1.0 + float(min(sides))) / (n_resamples + 1.0)),
    }


def _resampled_means(
    values: NDArray[np.float64], groups: Sequence[Any], n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Mean over all rows of each resample of the subjects, float64 `(n_resamples,)`."""
    if len(groups) != len(values):
        raise InputError(
            f"found {len(values)} values and {len(groups)} groups, expected one subject per value"
        )
    if n_resamples < 1:
        raise InputError(f"n_resamples: found {n_resamples}, expected at least 1")
    labels = np.asarray(groups)
    if labels.ndim != 1:
        raise InputError("groups: found a table, expected one subject per value")
    names, member = np.unique(labels, return_inverse=True)
    subjects = len(names)
    sums = np.bincount(member, weights=values, minlength=subjects)
    rows = np.bincount(member, minlength=subjects).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    block = max(1, _BLOCK // subjects)
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        times = rng.multinomial(subjects, np.full(subjects, 1.0 / subjects), size=size)
        drawn = times.astype(np.float64)
        means[start : start + size] = (drawn @ sums) / (drawn @ rows)
    return means
