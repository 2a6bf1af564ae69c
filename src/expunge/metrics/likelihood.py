"""How probable the answers still are: depth, truth ratio, forget quality, utility.

Throughout, l is the mean negative log-likelihood in nats over the answer's own tokens: prompt,
image, padding and end-of-sequence are left out.
"""

import math
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError
from expunge.metrics.checks import log_probabilities, vector


@overload
def answer_probability(mean_nll: float) -> float: ...
@overload
def answer_probability(mean_nll: NDArray[np.floating]) -> NDArray[np.float64]: ...
def answer_probability(
    mean_nll: float | NDArray[np.floating],
) -> float | NDArray[np.float64]:
    """Length-normalised probability of an answer, exp(-l), in [0, 1] (TOFU).

    Args:
        mean_nll: l of one answer, or an array of them; nats per token.

    Returns:
        A float for a number, else float64 of the same shape.

    Raises:
        InputError: NaN, or below 0 by more than rounding.
    """
    nll = np.asarray(mean_nll, dtype=np.float64)
    if np.isnan(nll).any() or (nll < -1e-4).any():
        raise InputError(
            f"mean_nll: found {nll[np.isnan(nll) | (nll < -1e-4)][0]:g}, expected 0 or more; "
            "negate it if it is a log-probability"
        )
    probability = np.exp(-np.maximum(nll, 0.0))
    return float(probability) if nll.ndim == 0 else probability


def exact_memorisation(argmax_right: ArrayLike) -> float:
    """Share of answer tokens that are the arg max under teacher forcing, in [0, 1].

    Args:
        argmax_right: One boolean per answer token, shape `(L,)`.

    Raises:
        InputError: No answer token.
    """
    return float(vector("argmax_right", argmax_right).mean())


def extraction_strength(argmax_right: ArrayLike) -> float:
    """1 - k/L, k being the fewest leading tokens to give so that all the rest come out right.

    The common implementation never lets k reach L and so credits a wholly wrong answer with 1/L;
    here a wrong last token gives 0.

    Args:
        argmax_right: One boolean per answer token under teacher forcing, shape `(L,)`.

    Raises:
        InputError: No answer token.
    """
    right = vector("argmax_right", argmax_right) != 0
    wrong = np.flatnonzero(~right)
    return 1.0 if wrong.size == 0 else float(1.0 - (wrong[-1] + 1) / right.size)


def truth_ratio(wrong_logp_means: ArrayLike, right_logp_mean: float) -> float:
    """How probable wrong answers are beside the right one (TOFU, arXiv 2401.06121, eq. 1).

    R is the *arithmetic* mean over the wrong answers of p^(1/length), divided by p^(1/length) of
    the right paraphrase: 0 where the model is sure of the right answer, large where it prefers
    wrong ones.

    Args:
        wrong_logp_means: Mean log-probability per token of each wrong answer, shape `(K,)`.
        right_logp_mean: The same of the right paraphrase.

    Raises:
        InputError: No wrong answer, NaN, a value above 0, or all of them minus infinity.
    """
    wrong = log_probabilities("wrong_logp_means", wrong_logp_means)
    right = float(log_probabilities("right_logp_mean", [right_logp_mean])[0])
    if right == -math.inf:
        if wrong.max() == -math.inf:
            raise InputError(
                "truth_ratio: found every answer impossible, expected at least one finite "
                "log-probability; compute them in float32"
            )
        return math.inf
    with np.errstate(over="ignore"):
        return float(np.exp(wrong - right).mean())


def truth_ratio_score(R: ArrayLike, forget: bool) -> float:
    """Score in [0, 1] of truth ratios, larger being better (TOFU).

    Args:
        R: Truth ratios from `truth_ratio`, shape `(n,)`.
        forget: True for the forget set: mean of min(R, 1/R), best where right and wrong answers
            are as likely. False elsewhere: mean of max(0, 1 - R), best where wrong ones are not.

    Raises:
        InputError: No ratio, NaN, or a negative one.
    """
    ratios = _ratios("R", R)
    if not forget:
        return float(np.maximum(0.0, 1.0 - ratios).mean())
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.minimum(ratios, 1.0 / ratios).mean())


def forget_quality(R_unlearned: ArrayLike, R_gold: ArrayLike | None) -> float | None:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios (TOFU).

    Near 1 the unlearned model cannot be told from gold on the forget set. The value falls with the
    number of questions at equal distance, so compare only runs over the same questions.

    Args:
        R_unlearned: Truth ratios of the unlearned model on the forget set, shape `(n,)`.
        R_gold: The same of gold, shape `(m,)`, or None without a gold model.

    Returns:
        The p-value, or None without gold.

    Raises:
        InputError: No ratio, NaN, or a negative one.
    """
    if R_gold is None:
        return None
    from scipy.stats import ks_2samp

    return float(ks_2samp(_ratios("R_unlearned", R_unlearned), _ratios("R_gold", R_gold)).pvalue)


def js_distance(R_unlearned: ArrayLike, R_gold: ArrayLike | None, bins: int = 20) -> float | None:
    """Jensen-Shannon distance (base 2, in [0, 1]) between the two sets of truth ratios.

    Ratios are put on [0, 1] by R / (1 + R) and counted in `bins` equal bins, which do not depend on
    the data. Few questions give a distance above 0 between equal models.

    Args:
        R_unlearned: Truth ratios of the unlearned model on the forget set, shape `(n,)`.
        R_gold: The same of gold, shape `(m,)`, or None without a gold model.
        bins: Number of bins, at least 1.

    Returns:
        The distance, or None without gold.

    Raises:
        InputError: No ratio, NaN, a negative one, or no bin.
    """
    if R_gold is None:
        return None
    if bins < 1:
        raise InputError(f"js_distance: found bins={bins}, expected at least 1")
    from scipy.spatial.distance import jensenshannon

    counts = [
        np.histogram(1.0 - 1.0 / (1.0 + _ratios(name, ratios)), bins=bins, range=(0.0, 1.0))[0]
        for name, ratios in (("R_unlearned", R_unlearned), ("R_gold", R_gold))
    ]
    return float(jensenshannon(counts[0], counts[1], base=2))


def model_utility(values: ArrayLike) -> float:
    """Harmonic mean of scores that are each better when larger (TOFU).

    Args:
        values: Accuracy or ROUGE-L, answer probability and truth-ratio score over the sets to keep,
            shape `(n,)`, each 0 or more.

    Returns:
        The harmonic mean; 0 as soon as one value is 0.

    Raises:
        InputError: No value, not finite, or a negative one.
    """
    scores = vector("values", values)
    if scores.min() < 0:
        raise InputError(f"model_utility: found {scores.min():g}, expected scores of 0 or more")
    if scores.min() == 0:
        return 0.0
    lowest = scores.min()
    return float(lowest / np.mean(lowest / scores))


def depth(
    nll_unlearned: ArrayLike, nll_vanilla: ArrayLike, nll_gold: ArrayLike | None
) -> float | None:
    """How far the answers' likelihood fell on the way from vanilla to gold.

    (unlearned - vanilla) / (gold - vanilla) of the mean answer NLL: 0 is nothing forgotten, 1 is as
    deep as a model that never saw it, above 1 is more than that.

    Args:
        nll_unlearned: l per question, shape `(n,)`, or already their mean; nats per token.
        nll_vanilla: The same of the vanilla model.
        nll_gold: The same of gold, or None without a gold model.

    Returns:
        The depth, or None where it has no meaning: without gold, or where gold's NLL is not above
        vanilla's, there being nothing to forget.

    Raises:
        InputError: Empty or NaN; vanilla or gold not finite.
    """
    if nll_gold is None:
        return None
    unlearned = vector("nll_unlearned", np.atleast_1d(nll_unlearned), finite=False).mean()
    vanilla = vector("nll_vanilla", np.atleast_1d(nll_vanilla)).mean()
    gold = vector("nll_gold", np.atleast_1d(nll_gold)).mean()
    return float((unlearned - vanilla) / (gold - vanilla)) if gold > vanilla else None


def _ratios(name: str, values: ArrayLike) -> NDArray[np.float64]:
    ratios = vector(name, values, finite=False)
    if ratios.min() < 0:
        raise InputError(f"{name}: found {ratios.min():g}, expected truth ratios of 0 or more")
    return ratios
