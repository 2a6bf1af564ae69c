"""Bootstrap over subjects and the collapse guard."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge import metrics
from expunge.errors import InputError


def uneven(seed, subjects=40):
    """Scores whose subjects differ in mean and in number of questions."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, size=subjects)
    groups = np.repeat([f"subject {i}" for i in range(subjects)], sizes)
    values = np.repeat(rng.normal(0.5, 0.2, subjects), sizes) + rng.normal(0, 0.1, len(groups))
    return values, groups


def slow_bootstrap(values, groups, n_resamples, seed):
    """Write out every resample row by row, from a generator of its own."""
    rng = np.random.default_rng([seed, 99])
    names = sorted(set(groups))
    rows = {name: [v for v, g in zip(values, groups, strict=True) if g == name] for name in names}
    means = []
    for _ in range(n_resamples):
        drawn = [v for i in rng.integers(0, len(names), len(names)) for v in rows[names[i]]]
        means.append(sum(drawn) / len(drawn))
    return np.array(means)


def test_interval_agrees_with_resampling_row_by_row():
    values, groups = uneven(0)
    expected = np.quantile(slow_bootstrap(values, groups, 6000, 0), [0.05, 0.95])
    width = expected[1] - expected[0]
    found = metrics.bootstrap_ci(values, groups, n_resamples=6000, level=0.9)
    np.testing.assert_allclose(found, expected, atol=0.05 * width)


def test_interval_has_the_width_of_the_standard_error_of_subject_means():
    rng = np.random.default_rng(3)
    per_subject = rng.normal(size=400)
    groups = np.repeat(np.arange(400), 5)
    low, high = metrics.bootstrap_ci(np.repeat(per_subject, 5), groups)
    expected = 2 * 1.96 * per_subject.std() / math.sqrt(400)
    assert high - low == pytest.approx(expected, rel=0.08)
    # Taking the repeated rows as independent would give an interval sqrt(5) times too narrow.
    alone = metrics.bootstrap_ci(np.repeat(per_subject, 5), np.arange(2000))
    assert (high - low) / (alone[1] - alone[0]) == pytest.approx(math.sqrt(5), rel=0.08)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = np.repeat(rng.normal(size=60), 3)
        low, high = metrics.bootstrap_ci(values, np.repeat(np.arange(60), 3), n_resamples=400)
        hits += low <= 0.0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_interval_is_deterministic_and_blind_to_row_order():
    values, groups = uneven(1)
    first = metrics.bootstrap_ci(values, groups, seed=5)
    assert metrics.bootstrap_ci(values, groups, seed=5) == first
    assert metrics.bootstrap_ci(values, groups, seed=6) != first
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = metrics.bootstrap_ci(values[order], list(groups[order]), seed=5)
    assert shuffled == pytest.approx(first, abs=1e-12)


def test_interval_does_not_depend_on_the_block_size(monkeypatch):
    values, groups = uneven(2)
    whole = metrics.bootstrap_ci(values, groups, n_resamples=300)
    monkeypatch.setattr("expunge.metrics.intervals._BLOCK", 700)
    assert metrics.bootstrap_ci(values, groups, n_resamples=300) == pytest.approx(whole, abs=1e-12)


def test_interval_ends():
    assert metrics.bootstrap_ci([1.0] * 6, list("aabbcc")) == (1.0, 1.0)
    assert metrics.bootstrap_ci([True, False], ["a", "a"]) == (0.5, 0.5)
    assert metrics.bootstrap_ci([0.3], ["a"]) == pytest.approx((0.3, 0.3))
    wide = metrics.bootstrap_ci(*uneven(4), level=0.99)
    narrow = metrics.bootstrap_ci(*uneven(4), level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("values", "groups", "settings", "line"),
    [
        ([], [], {}, "values"),
        ([1.0], ["a", "b"], {}, "1 values and 2 groups"),
        ([1.0, math.nan], ["a", "b"], {}, "position 1"),
        ([1.0], ["a"], {"level": 95}, "level: found 95"),
        ([1.0], ["a"], {"n_resamples": 0}, "n_resamples: found 0"),
        ([1.0, 2.0], [["a", "b"], ["c", "d"]], {}, "table"),
    ],
)
def test_interval_refuses(values, groups, settings, line):
    with pytest.raises(InputError, match=line):
        metrics.bootstrap_ci(values, groups, **settings)


def test_paired_bootstrap_agrees_with_resampling_row_by_row():
    values, groups = uneven(5)
    noise = np.random.default_rng(8).normal(0.03, 0.1, len(values))
    found = metrics.paired_bootstrap(values + noise, values, groups, n_resamples=6000)
    slow = slow_bootstrap(noise, groups, 6000, 1)
    assert found["difference"] == pytest.approx(noise.mean())
    np.testing.assert_allclose(found["ci95"], np.quantile(slow, [0.025, 0.975]), atol=2e-3)
    assert found["p"] == pytest.approx(2 * min((slow <= 0).mean(), (slow >= 0).mean()), abs=0.02)


def test_pairing_is_sharper_than_two_intervals():
    values, groups = uneven(6)
    found = metrics.paired_bootstrap(values + 0.01, values, groups)
    assert found["ci95"] == pytest.approx([0.01, 0.01])
    assert found["p"] == pytest.approx(2 / 2001)
    low, high = metrics.bootstrap_ci(values, groups)
    assert high - low > 0.05


def test_paired_bootstrap_ends():
    values, groups = uneven(7)
    same = metrics.paired_bootstrap(values, values, groups)
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    there = metrics.paired_bootstrap(values, values[::-1], groups)
    back = metrics.paired_bootstrap(values[::-1], values, groups)
    assert there["difference"] == -back["difference"] and there["p"] == back["p"]
    assert there["ci95"] == pytest.approx([-back["ci95"][1], -back["ci95"][0]])
    with pytest.raises(InputError, match="values_a"):
        metrics.paired_bootstrap([1.0], [1.0, 2.0], ["a"])


def test_p_values_are_about_uniform_when_nothing_differs():
    p = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(2, 80))
        p.append(metrics.paired_bootstrap(a, b, np.arange(80), n_resamples=400)["p"])
    assert np.mean(np.array(p) < 0.05) < 0.11
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("answer", "rate"),
    [
        ("", 0.0),
        ("   ", 0.0),
        ("Oslo", 0.0),
        ("banana", 0.0),
        ("Mississippi", 1 / 8),
        ("no no", 0.0),
        ("no No no no", 2 / 3),
        ("She paints in Oslo, near the old harbour.", 0.0),
        ("it is so !!!!!!", 1 - 4 / 8),
        ("aaaaaaaa", 1 - 1 / 5),
        ("lalalalala", 1 - 2 / 7),
    ],
)
def test_repetition_rate(answer, rate):
    assert metrics.repetition_rate(answer) == pytest.approx(rate)


@given(st.lists(st.sampled_from(["red", "blue", "green", "."]), min_size=2, max_size=30))
def test_repetition_rate_counts_repeated_pairs(tokens):
    pairs = Counter(zip(tokens, tokens[1:], strict=False))
    repeats = sum(times - 1 for times in pairs.values())
    expected = repeats / pairs.total()
    assert metrics.repetition_rate(" ".join(tokens)) == pytest.approx(expected)


REFERENCES = [
    f"{name} lives in {town}." for name in ("Ada", "Bo", "Cy") for town in ("Oslo", "Rome")
]


def test_sound_answers_are_described_and_not_flagged():
    report = metrics.collapse_report(REFERENCES[::-1], REFERENCES)
    assert report == {
        "n": 6,
        "mean_length": 4.0,
        "repetition": 0.0,
        "distinct": 1.0,
        "most_common": 1 / 6,
        "empty": 0.0,
        "perplexity": None,
        "reasons": [],
        "collapsed": False,
    }


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([*REFERENCES[:4], "", "?!"], "empty"),
        ([f"{i} " + "the the the the the the" for i in range(6)], "repetition"),
        ([*REFERENCES[:1], *["I do not know."] * 5], "most_common"),
    ],
)
@pytest.mark.parametrize("references", [None, REFERENCES])
def test_garbage_is_flagged_with_its_reason(answers, reason, references):
    report = metrics.collapse_report(answers, references)
    assert report["reasons"] == [reason]
    assert report["collapsed"] is True


def test_what_is_usual_among_the_references_is_no_fault():
    yes = ["yes"] * 9 + ["no"]
    assert metrics.collapse_report(yes)["collapsed"]
    assert not metrics.collapse_report(["yes"] * 10, yes)["collapsed"]
    chant = [f"{i} row row row row row" for i in range(5)]
    assert not metrics.collapse_report(chant, chant)["collapsed"]


def test_perplexity_counts_only_beside_a_sound_models():
    alone = metrics.collapse_report(REFERENCES, answer_nll=[math.log(50.0)] * 6)
    assert alone["perplexity"] == pytest.approx(50.0) and not alone["collapsed"]
    near = metrics.collapse_report(REFERENCES, REFERENCES, [math.log(50.0)], [math.log(6.0)])
    assert near["reasons"] == []
    far = metrics.collapse_report(REFERENCES, REFERENCES, [math.log(50.0)], [math.log(4.0)])
    assert far["reasons"] == ["perplexity"]


def test_one_answer_and_none():
    assert not metrics.collapse_report(["Oslo"])["collapsed"]
    assert metrics.collapse_report([""])["reasons"] == ["empty"]
    with pytest.raises(InputError, match="answers: found none"):
        metrics.collapse_report([])
    with pytest.raises(InputError, match="1 answers and 2 references"):
        metrics.collapse_report(["a"], ["a", "b"])
