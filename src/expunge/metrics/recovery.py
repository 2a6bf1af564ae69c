"""What comes back: under attack, and as deletion requests follow one another."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError
from expunge.metrics.checks import same_length, vector


def recovery_area(steps: ArrayLike, unlearned: ArrayLike, gold: ArrayLike | None) -> float | None:
    """Area between the recovery curves of the unlearned model and of gold, per step.

    Trapezoids over the steps divided by the span of steps, so the figure has the unit of the score:
    the mean lead that the supposedly forgotten knowledge still gives over learning it afresh.

    Args:
        steps: Fine-tuning steps at which both were measured, increasing, shape `(n,)`, n >= 2.
        unlearned: Forget score of the unlearned model at each, shape `(n,)`.
        gold: The same of the equally treated gold, or None without a gold model.

    Returns:
        The mean lead, or None without gold.

    Raises:
        InputError: Fewer than two steps, steps out of order, or lengths that differ.
    """
    if gold is None:
        return None
    x, ours = same_length("steps", steps, "unlearned", unlearned)
    _, theirs = same_length("steps", steps, "gold", gold)
    width = np.diff(x)
    if len(x) < 2 or width.min() <= 0:
        raise InputError(f"steps: found {x.tolist()}, expected at least two, each above the last")
    lead = ours - theirs
    return float(np.sum(width * (lead[1:] + lead[:-1]) / 2) / (x[-1] - x[0]))


def rebound(forget_accuracy: ArrayLike) -> NDArray[np.float64]:
    """How far each request's forgotten answers came back after later requests (PULSE).

    Args:
        forget_accuracy: A[s, j], accuracy on request j after step s, shape `(T, T)`; entries with
            s < j are not read.

    Returns:
        Per request j the largest A[s, j] - A[j, j] over s >= j, 0 or more, float64 `(T,)`.

    Raises:
        InputError: Not square, empty, or a value at s >= j that is not finite.
    """
    table = np.asarray(forget_accuracy, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.size == 0:
        raise InputError(
            f"forget_accuracy: found shape {table.shape}, expected one row per step and one "
            "column per request, as many of each"
        )
    if not np.isfinite(table[np.tril_indices(len(table))]).all():
        raise InputError(
            "forget_accuracy: found a gap, expected every request measured after its own step "
            "and all later ones"
        )
    return np.array([table[j:, j].max() - table[j, j] for j in range(len(table))])


def order_sensitivity(final_scores: ArrayLike) -> float:
    """Largest less smallest final score over runs that differ only in the order of requests.

    Args:
        final_scores: One score after the last step per order, shape `(n_orders,)`.

    Raises:
        InputError: No score, or one that is not finite.
    """
    scores = vector("final_scores", final_scores)
    return float(scores.max() - scores.min())
