"""Whether the same question fares alike with the image and without it (UMU-Bench)."""

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import InputError
from expunge.metrics.checks import same_length


def modality_alignment(right_multi: ArrayLike, right_text: ArrayLike) -> tuple[float, float]:
    """Shares of questions answered right, and answered wrong, under both conditions.

    Args:
        right_multi: Per question, whether the answer with the image was right, shape `(n,)`.
        right_text: The same without the image, same order.

    Returns:
        `(AccR, AccF)`: right in both (wanted on retain), wrong in both (wanted on forget).

    Raises:
        InputError: No question, or the lengths differ.
    """
    multi, text = same_length("right_multi", right_multi, "right_text", right_text)
    both = np.mean((multi != 0) & (text != 0))
    neither = np.mean((multi == 0) & (text == 0))
    return float(both), float(neither)


def rouge_alignment(rouge_multi: ArrayLike, rouge_text: ArrayLike) -> tuple[float, float]:
    """Means over questions of 2ab/(a+b) and (a^2+b^2)/(a+b), a and b being the two ROUGE-L.

    Args:
        rouge_multi: ROUGE-L per question with the image, in [0, 1], shape `(n,)`.
        rouge_text: The same without the image, same order.

    Returns:
        `(RLR, RLF)`: the first is large only where both are (wanted on retain), the second small
        only where both are (wanted on forget). A question with a + b = 0 counts 0 in both.

    Raises:
        InputError: No question, the lengths differ, or a negative score.
    """
    a, b = same_length("rouge_multi", rouge_multi, "rouge_text", rouge_text)
    if min(a.min(), b.min()) < 0:
        raise InputError(f"found ROUGE-L {min(a.min(), b.min()):g}, expected 0 to 1")
    total = a + b
    safe = np.where(total > 0, total, 1.0)
    return float(np.mean(2 * a * b / safe)), float(np.mean((a**2 + b**2) / safe))


def modality_gap(acc_multi: float, acc_text: float) -> float:
    """|accuracy with the image - accuracy without it|: 0 where both were forgotten alike."""
    return abs(float(acc_multi) - float(acc_text))
