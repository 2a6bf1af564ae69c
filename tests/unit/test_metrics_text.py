"""Task accuracy and text overlap against nltk, rouge-score and slow loops."""

import math
import random
import re
import string
import sys
from subprocess import run

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge import metrics
from expunge.errors import InputError

VOCABULARY = "the cat sat on a mat running runs painter Painters Oslo 1984 blue, in".split()


def random_pairs(n, longest=12):
    rng = random.Random(0)
    for _ in range(n):
        yield tuple(" ".join(rng.choices(VOCABULARY, k=rng.randint(1, longest))) for _ in range(2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Hague!! ", "the hague"),
        ("1,234,567 people", "1234567 people"),
        ("costs 3.50.", "costs 3.50"),
        ("May 5, 2001", "may 5 2001"),
        ("O\u2019Brien", "o brien"),
        ("STRASSE Stra\u00dfe", "strasse strasse"),
        ("\uff21\uff22 cafe\u0301", "ab caf\u00e9"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert metrics.normalise(text) == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_normalise_twice_changes_nothing(text):
    once = metrics.normalise(text)
    assert metrics.normalise(once) == once
    assert once == once.strip() and "  " not in once


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("She lives in Oslo.", "oslo", True),
        ("Oslo", "She lives in Oslo", False),
        ("He was a paintbrush maker", "paint", False),
        ("New  York, USA", "new york", True),
        ("York New", "new york", False),
        ("about 3.5 metres", "5", False),
        ("1,000 metres", "1000", True),
        ("Vitamin B", "Vitamin A", False),
        ("\u4ed6\u4f4f\u5728\u5317\u4eac\u3002", "\u5317\u4eac", True),
        ("\u4ed6\u4f4f\u5728\u4e1c\u4eac\u3002", "\u5317\u4eac", False),
        ("", "Oslo", False),
        ("Oslo", "", False),
        ("", "", False),
        (" + ", "+", True),
        ("-", "+", False),
    ],
)
def test_accuracy(answer, reference, right):
    assert metrics.accuracy(answer, reference) is right


@given(st.lists(st.sampled_from(VOCABULARY)), st.lists(st.sampled_from(VOCABULARY), min_size=1))
def test_accuracy_is_a_window_of_words(answer, reference):
    given_words, wanted = (
        [w.lower().strip(",") for w in answer],
        [w.lower().strip(",") for w in reference],
    )
    windows = [given_words[i : i + len(wanted)] for i in range(len(given_words))]
    assert metrics.accuracy(" ".join(answer), " ".join(reference)) == (wanted in windows)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("He was a PAINTBRUSH maker", "paint", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("anything", "", False),
        ("anything", "  ", False),
        ("", "", False),
        ("", "x", False),
    ],
)
def test_cloze(answer, reference, right):
    assert metrics.cloze(answer, reference) is right


def test_cloze_searches_whatever_the_case():
    rng, hits = random.Random(1), 0
    for _ in range(400):
        completion = "".join(rng.choices("abAB\u00e9\u00c9 ", k=rng.randint(0, 12)))
        reference = "".join(rng.choices("abAB\u00e9\u00c9 ", k=rng.randint(0, 3)))
        wanted = re.escape(reference.strip())
        expected = bool(wanted) and re.search(wanted, completion, re.IGNORECASE) is not None
        assert metrics.cloze(completion, reference) is expected
        hits += expected
    assert 100 < hits < 300


def slow_lcs(a, b):
    if not a or not b:
        return 0
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


def stems(text):
    from nltk.stem.porter import PorterStemmer

    cleaned = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return [PorterStemmer().stem(w) if len(w) > 3 else w for w in cleaned]


def f1(shared, n_answer, n_reference):
    return 2 * shared / (n_answer + n_reference)


def test_rouge_l_is_the_stemmed_f1_of_the_common_subsequence():
    for answer, reference in random_pairs(60):
        a, r = stems(answer), stems(reference)
        expected = f1(slow_lcs(a, r), len(a), len(r))
        assert metrics.rouge_l(answer, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2])
def test_rouge_n_counts_shared_grams_once_each(n):
    for answer, reference in random_pairs(60):
        a, r = (
            [tuple(s[i : i + n]) for i in range(len(s) - n + 1)]
            for s in (stems(answer), stems(reference))
        )
        left, shared = list(r), 0
        for gram in a:
            if gram in left:
                left.remove(gram)
                shared += 1
        expected = f1(shared, len(a), len(r)) if shared else 0.0
        assert metrics.rouge_n(answer, reference, n) == pytest.approx(expected, abs=1e-12)


def test_rouge_reads_other_scripts_than_latin():
    beijing = "\u5317\u4eac"
    assert metrics.rouge_l(beijing, beijing) == 1.0
    assert metrics.rouge_l("\u4e1c\u4eac", beijing) == 0.5
    assert metrics.rouge_l("\u041e\u0441\u043b\u043e", "\u041e\u0441\u043b\u043e") == 1.0


@pytest.mark.parametrize("score", [metrics.rouge_l, metrics.rouge_n, metrics.bleu])
def test_overlap_ends(score):
    assert score("", "Oslo") == score("Oslo", "") == score("", "") == 0.0
    assert score("Oslo", "Bergen") == 0.0
    assert score("Oslo", "Oslo") == pytest.approx(1.0)


def test_rouge_n_refuses_an_order_it_does_not_know():
    with pytest.raises(InputError, match="n=0"):
        metrics.rouge_n("a", "a", 0)


def test_bleu_is_the_closed_form_when_every_order_matches():
    # 5 of 6, 4 of 5, 3 of 4 and 2 of 3 grams match; the lengths are equal.
    value = metrics.bleu("one two three four five seven", "one two three four five six")
    assert value == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    short = metrics.bleu("one two three four", "one two three four five six")
    assert short == pytest.approx(math.exp(1 - 6 / 4))


PIECES = {
    "the": ["the"],
    "Oslo": ["Oslo"],
    "oslo": ["oslo"],
    "blue,": ["blue", ","],
    "harbour.": ["harbour", "."],
    "(north)": ["(", "north", ")"],
    "it's": ["it's"],
    "1,984": ["1,984"],
    "1990-94": ["1990", "-", "94"],
}


def test_bleu_is_nltk_on_13a_tokens_over_the_orders_the_answer_has():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    rng, smooth = random.Random(2), SmoothingFunction().method3
    for _ in range(200):
        answer, reference = (rng.choices(list(PIECES), k=rng.randint(1, 9)) for _ in range(2))
        given_tokens, wanted = (
            [t for w in side for t in PIECES[w]] for side in (answer, reference)
        )
        orders = min(4, len(given_tokens))
        expected = sentence_bleu([wanted], given_tokens, [1 / orders] * orders, smooth)
        assert metrics.bleu(" ".join(answer), " ".join(reference)) == pytest.approx(expected)


def test_bleu_method1_is_nltk():
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    for answer, reference in random_pairs(150, longest=7):
        expected = sentence_bleu([reference.split()], answer.split(), smoothing_function=smooth)
        assert metrics.bleu_method1(answer, reference) == pytest.approx(expected, abs=1e-12)


def test_bleu_method1_ends():
    assert metrics.bleu_method1("", "a b") == metrics.bleu_method1("a b", "") == 0.0
    assert metrics.bleu_method1("one", "one") == pytest.approx(0.1**0.75)


@pytest.mark.parametrize(
    ("answer", "n", "choice"),
    [
        ("B", 4, 1),
        (" **(c)** Oslo", 4, 2),
        ("D. Bergen", 4, 3),
        ("E", 4, None),
        ("Paris", 4, None),
        ("7 bananas", 4, None),
        ("\uff22", 2, 1),
        ("\u4eac B", 4, None),
        ("", 4, None),
        ("...", 4, None),
        ("z", 26, 25),
        ("Z", 25, None),
        ("A", 1, 0),
        ("B", 1, None),
        ("\n\n _c_", 4, 2),
        ("Answer: B", 4, 0),
        ("\u24b7", 4, 1),
        ("A\u0301", 26, None),
        ("\u0661 B", 4, None),
    ],
)
def test_first_letter_choice(answer, n, choice):
    assert metrics.first_letter_choice(answer, n) == choice


@given(st.text(alphabet="ABcdyZ09 (*._\n"), st.integers(1, 26))
def test_first_letter_choice_reads_the_first_letter_or_digit(answer, n):
    start = re.search("[A-Za-z0-9]", answer)
    place = string.ascii_uppercase.find(start[0].upper()) if start else -1
    assert metrics.first_letter_choice(answer, n) == (place if 0 <= place < n else None)


@pytest.mark.parametrize("n", [0, 27])
def test_first_letter_choice_needs_letters(n):
    with pytest.raises(InputError, match=f"found {n} choices"):
        metrics.first_letter_choice("A", n)


def test_likeliest_choice():
    assert metrics.likeliest_choice([-2.0, -0.5, -1.0]) == 1
    assert metrics.likeliest_choice([-math.inf, -9.0]) == 1
    assert metrics.likeliest_choice([-1.0]) == 0
    with pytest.raises(InputError, match="position 1"):
        metrics.likeliest_choice([-1.0, math.nan])


@given(st.lists(st.sampled_from([-math.inf, -3.0, -2.0, -1.0]), min_size=1, max_size=6))
def test_the_first_of_equally_likely_choices_is_taken(mean_logp):
    best = 0
    for place, value in enumerate(mean_logp):
        if value > mean_logp[best]:
            best = place
    assert metrics.likeliest_choice(mean_logp) == best


@pytest.mark.parametrize(
    ("function", "name"), [(metrics.likeliest_choice, "mean_logp"), (metrics.chance, "n_choices")]
)
def test_no_choice_or_question_is_an_error_that_names_it(function, name):
    with pytest.raises(InputError, match=f"^{name}: found shape"):
        function([])


def test_chance_is_what_random_guessing_gets():
    counts = np.array([2, 4, 5, 5])
    guesses = np.random.default_rng(0).integers(0, counts, size=(200_000, 4))
    assert metrics.chance(counts) == pytest.approx((guesses == 0).mean(), abs=2e-3)
    assert metrics.chance([4]) == 0.25
    with pytest.raises(InputError, match="0 choices"):
        metrics.chance([4, 0])


def test_the_table_names_functions_and_leaves_none_out():
    public = {name for name in metrics.__all__ if name != "METRICS"}
    helpers = {"normalise", "words", "bootstrap_ci", "paired_bootstrap"}
    assert set(metrics.METRICS) == public - helpers
    assert all(callable(getattr(metrics, name)) for name in public)
    assert all(line and "\n" not in line for line in metrics.METRICS.values())


def test_importing_the_metrics_loads_nothing_heavy():
    heavy = "torch transformers scipy sklearn rouge_score sacrebleu nltk".split()
    code = (
        "import sys, expunge.errors; before = set(sys.modules); import expunge.metrics; "
        f"print(sorted(set({heavy!r}) & (set(sys.modules) - before)))"
    )
    out = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
