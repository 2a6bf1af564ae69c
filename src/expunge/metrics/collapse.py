"""Collapse guard: a model that answers garbage has forgotten nothing worth praise."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import InputError
from expunge.metrics.checks import vector
from expunge.metrics.text import normalise, words

MORE_EMPTY = 0.2
MORE_REPETITION = 0.2
MORE_COMMON = 0.5
TIMES_PERPLEXITY = 10.0

_UNIT = re.compile(r"\w+|[^\w\s]")


def repetition_rate(answer: str) -> float:
    """Share of an answer that repeats itself, 0 to below 1.

    1 - distinct / all over pairs of neighbouring words and punctuation marks, letter case aside.
    An answer of a single such unit, a long run of letters for instance, is judged by its runs of
    four characters instead. An answer too short for two of either gives 0.
    """
    text = answer.casefold()
    units: Sequence[str] = _UNIT.findall(text)
    size = 2
    if len(units) < 2:
        units, size = text.strip(), 4
    grams = [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def collapse_report(
    answers: Sequence[str],
    references: Sequence[str] | None = None,
    answer_nll: ArrayLike | None = None,
    baseline_nll: ArrayLike | None = None,
) -> dict[str, Any]:
    """Describe a set of answers and say whether the model behind them has collapsed.

    Args:
        answers: What the model wrote, one per question.
        references: Sound answers to the same questions (the reference answers, or vanilla's); what
            is usual among them is not held against the model. Without them no empty or repetitive
            answer is taken as usual.
        answer_nll: Mean NLL of each answer under the vanilla model, nats per token, for its
            perplexity.
        baseline_nll: The same for the answers of a sound model (gold, or vanilla itself). Only with
            both can perplexity count: a wrong fluent answer too surprises vanilla.

    Returns:
        `n`; `mean_length` in words; `repetition`, mean of `repetition_rate`; `distinct`, share of
        different answers; `most_common`, share of the most frequent one; `empty`, share without
        a letter or digit; `perplexity` under vanilla or None; `reasons`, the names among `empty`,
        `repetition`, `most_common`, `perplexity` that exceed the references' by more than
        `MORE_EMPTY`, `MORE_REPETITION` or `MORE_COMMON`, or the baseline `TIMES_PERPLEXITY` times;
        `collapsed`, whether there is any reason. One refusal for every question counts.

    Raises:
        InputError: No answer, or lengths that differ.
    """
    found = _describe("answers", answers)
    usual = {"empty": 0.0, "repetition": 0.0, "most_common": 1.0 / len(answers)}
    if references is not None:
        if len(references) != len(answers):
            raise InputError(
                f"found {len(answers)} answers and {len(references)} references, expected one each"
            )
        usual = _describe("references", references)
    limits = {"empty": MORE_EMPTY, "repetition": MORE_REPETITION, "most_common": MORE_COMMON}
    reasons = [name for name, more in limits.items() if found[name] > usual[name] + more]
    found["perplexity"] = None
    if answer_nll is not None:
        nll = float(vector("answer_nll", answer_nll).mean())
        found["perplexity"] = float(np.exp(nll))
        if baseline_nll is not None:
            baseline = float(vector("baseline_nll", baseline_nll).mean())
            if nll - baseline > math.log(TIMES_PERPLEXITY):
                reasons.append("perplexity")
    return {**found, "reasons": reasons, "collapsed": bool(reasons)}


def _describe(name: str, answers: Sequence[str]) -> dict[str, Any]:
    n = len(answers)
    if n == 0:
        raise InputError(f"{name}: found none, expected at least one")
    folded = Counter(normalise(answer) for answer in answers)
    return {
        "n": n,
        "mean_length": sum(len(words(answer)) for answer in answers) / n,
        "repetition": sum(map(repetition_rate, answers)) / n,
        "distinct": len(folded) / n,
        "most_common": max(folded.values()) / n,
        "empty": folded[""] / n,
    }
