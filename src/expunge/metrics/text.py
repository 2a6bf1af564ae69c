"""Task accuracy: what a written answer is worth beside its reference."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from expunge.errors import InputError
from expunge.metrics.checks import vector

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_STRAY_DOT = re.compile(r"(?<!\d)\.|\.(?!\d)")
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_LAST_LATIN = "\u024f"


def _fold(text: str) -> str:
    """Text without differences of case, width or accent encoding."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """Reduce a text to lower-case words with single spaces between them.

    Unicode NFKC and case folding; letters, marks and digits of any script stay, as does the point
    inside a number; commas between thousands vanish; everything else becomes a space. Articles and
    accents stay, since they tell names apart.
    """
    plain = _STRAY_DOT.sub(" ", _THOUSANDS.sub("", _fold(text)))
    kept = (c if c == "." or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return " ".join("".join(kept).split())


def words(text: str) -> list[str]:
    """Words of the normalised text; each Han or kana character is a word, having no spaces."""
    return _UNSPACED.sub(r" \1 ", normalise(text)).split()


def accuracy(answer: str, reference: str) -> bool:
    """Whether the answer is right: it equals the reference or contains it as whole words.

    Both sides are normalised first. A blank reference is never met; one made only of
    symbols is met by the same symbols alone.
    """
    wanted = words(reference)
    if not wanted:
        return bool(reference.strip()) and _fold(answer).strip() == _fold(reference).strip()
    return f" {' '.join(wanted)} " in f" {' '.join(words(answer))} "


def cloze(answer: str, reference: str) -> bool:
    """Whether the completion contains the reference, letter case aside (MLLMU-Bench).

    Part of a word is enough, unlike `accuracy`. A blank reference gives False.
    """
    wanted = _fold(reference).strip()
    return bool(wanted) and wanted in _fold(answer)


class _WordTokenizer:
    """What rouge-score calls instead of its own tokeniser, which knows only a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=16)
def _rouge_scorer(kind: str, latin: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True, tokenizer=None if latin else _WordTokenizer())


def _rouge(kind: str, answer: str, reference: str) -> float:
    latin = not any(c > _LAST_LATIN and c.isalpha() for c in reference)
    return float(_rouge_scorer(kind, latin).score(reference, answer)[kind].fmeasure)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 in [0, 1] by rouge-score with Porter stemming, as MLLMU-Bench reports it.

    rouge-score drops every letter outside a-z. A reference with letters of another script than
    Latin would score 0 against itself, so there both sides are split by `words`, without stemming.
    An empty side gives 0.
    """
    return _rouge("rougeL", answer, reference)


def rouge_n(answer: str, reference: str, n: int = 1) -> float:
    """ROUGE-N F1 in [0, 1] over n-grams of words; tokenised and stemmed as `rouge_l`.

    Raises:
        InputError: `n` is not in 1..9.
    """
    if not 1 <= n <= 9:
        raise InputError(f"rouge_n: found n={n}, expected 1 to 9")
    return _rouge(f"rouge{n}", answer, reference)


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU-4 in [0, 1] by sacrebleu (13a tokens, exponential smoothing).

    Uses sacrebleu's effective order, so a short exact answer scores 1. An empty side gives 0.
    """
    if not answer.strip() or not reference.strip():
        return 0.0
    from sacrebleu import sentence_bleu

    return min(1.0, float(sentence_bleu(answer, [reference]).score) / 100.0)


def bleu_method1(answer: str, reference: str) -> float:
    """Sentence BLEU-4 in [0, 1] over space-separated words, smoothed as in MLLMU-Bench.

    An n-gram order without a match counts 0.1 matches (method 1 of Chen and Cherry, 2014), and an
    order longer than the answer counts one possible match. An exact answer of fewer than four words
    so stays well under 1: compare such figures only with each other. No shared word gives 0.
    """
    given, wanted = answer.split(), reference.split()
    if not set(given) & set(wanted):
        return 0.0
    log_precision = 0.0
    for order in range(1, 5):
        have, want = _ngrams(given, order), _ngrams(wanted, order)
        matched = (have & want).total()
        log_precision += math.log((matched or 0.1) / max(1, have.total())) / 4
    brevity = min(0.0, 1.0 - len(wanted) / len(given))
    return math.exp(brevity + log_precision)


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def first_letter_choice(answer: str, n_choices: int) -> int | None:
    """Which choice a written answer picks: its first letter, A for 0 (MLLMU-Bench).

    Punctuation and spaces before the letter are passed over, as in ``"(B) Paris"``.

    Args:
        answer: What the model wrote.
        n_choices: How many choices were offered, 1 to 26.

    Returns:
        The position of the choice, or None where the answer starts with a digit, with a letter that
        names no choice, or holds none.

    Raises:
        InputError: `n_choices` is not in 1..26.
    """
    if not 1 <= n_choices <= 26:
        raise InputError(f"found {n_choices} choices, expected 1 to 26 to name them by letters")
    start = next((c for c in _fold(answer) if c.isalnum()), "")
    position = ord(start) - ord("a") if start else -1
    return position if 0 <= position < n_choices else None


def likeliest_choice(mean_logp: ArrayLike) -> int:
    """Position of the choice with the highest length-normalised log-probability.

    Args:
        mean_logp: Mean log-probability per answer token, one per choice, shape `(n_choices,)`.

    Raises:
        InputError: No choice, or NaN.
    """
    return int(np.argmax(vector("mean_logp", mean_logp, finite=False)))


def chance(n_choices: ArrayLike) -> float:
    """Accuracy of blind guessing: the mean of 1 / number of choices, shape `(n_questions,)`.

    Raises:
        InputError: No question, or one with no choice.
    """
    counts = vector("n_choices", n_choices)
    if counts.min() < 1:
        raise InputError(f"found a question with {counts.min():g} choices, expected at least 1")
    return float(np.mean(1.0 / counts))
