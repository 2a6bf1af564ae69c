"""Likelihood, membership, alignment and recovery against slow loops, scipy and sklearn."""

import math
import zlib as standard_zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expunge import metrics
from expunge.errors import InputError

RNG = np.random.default_rng(7)
BITS = st.lists(st.booleans(), min_size=1, max_size=30)


def test_answer_probability():
    logp = np.log([0.5, 0.25, 0.125])
    assert metrics.answer_probability(-logp.mean()) == pytest.approx(
        (0.5 * 0.25 * 0.125) ** (1 / 3)
    )
    assert isinstance(metrics.answer_probability(1.0), float)
    many = metrics.answer_probability(np.array([[0.0, math.inf], [1.0, 2.0]], dtype=np.float32))
    np.testing.assert_allclose(many, [[1, 0], [math.exp(-1), math.exp(-2)]], rtol=1e-12)
    assert metrics.answer_probability(-1e-9) == 1.0


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_answer_probability_is_the_geometric_mean_of_the_softmax_at_the_tokens(length):
    import torch

    rng = np.random.default_rng(length)
    logits, tokens = rng.normal(0, 3, (length, 11)), rng.integers(0, 11, length)
    product = 1.0
    for row, token in zip(logits, tokens, strict=True):
        product *= math.exp(row[token]) / sum(math.exp(x) for x in row)
    nll = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(tokens)).item()
    expected = pytest.approx(product ** (1 / length), rel=1e-9)
    assert metrics.answer_probability(nll) == expected
    assert metrics.answer_probability(np.array([nll]))[0] == expected


@pytest.mark.parametrize("bad", [-0.5, math.nan])
def test_answer_probability_refuses(bad):
    with pytest.raises(InputError, match="mean_nll"):
        metrics.answer_probability(bad)


def slow_strength(right):
    """Try every k from the shortest given prefix on."""
    for k in range(len(right) + 1):
        if all(right[k:]):
            return 1 - k / len(right)
    raise AssertionError


@given(BITS)
def test_extraction_strength_and_memorisation(right):
    assert metrics.extraction_strength(right) == pytest.approx(slow_strength(right))
    assert metrics.extraction_strength(right) <= metrics.exact_memorisation(right) + 1e-12
    assert metrics.exact_memorisation(right) == pytest.approx(right.count(True) / len(right))


def test_extraction_strength_ends():
    assert metrics.extraction_strength([True]) == 1.0
    assert metrics.extraction_strength([False]) == 0.0
    assert metrics.extraction_strength(np.zeros(9, dtype=bool)) == 0.0
    assert metrics.extraction_strength([True, True, False]) == 0.0
    assert metrics.extraction_strength([False, True, True, True]) == 0.75
    for function in (metrics.extraction_strength, metrics.exact_memorisation):
        with pytest.raises(InputError, match="argmax_right"):
            function([])


def test_truth_ratio_is_the_arithmetic_mean_over_the_wrong_answers():
    wrong = [RNG.uniform(0.01, 1, size=n) for n in (1, 3, 6)]
    right = RNG.uniform(0.01, 1, size=4)
    expected = sum(math.prod(p) ** (1 / len(p)) for p in wrong) / 3 / math.prod(right) ** (1 / 4)
    value = metrics.truth_ratio([np.log(p).mean() for p in wrong], float(np.log(right).mean()))
    assert value == pytest.approx(expected, rel=1e-12)


def test_truth_ratio_takes_the_mean_it_names_and_not_the_geometric_one():
    from scipy.stats import gmean

    assert "arithmetic mean" in metrics.METRICS["truth_ratio"]
    rng = np.random.default_rng(11)
    for count in (2, 3, 8):
        wrong, right = rng.uniform(0.01, 1, count), rng.uniform(0.01, 1)
        value = metrics.truth_ratio(np.log(wrong), math.log(right))
        assert value == pytest.approx(sum(w / right for w in wrong) / count, rel=1e-12)
        assert value > 1.001 * gmean(wrong) / right


def test_truth_ratio_ends():
    assert metrics.truth_ratio([-2.0, -2.0], -2.0) == 1.0
    assert metrics.truth_ratio([-math.inf], -1.0) == 0.0
    assert metrics.truth_ratio([-1.0, -math.inf], -math.inf) == math.inf
    assert metrics.truth_ratio([-800.0], -801.0) == pytest.approx(math.e)
    with pytest.raises(InputError, match="impossible"):
        metrics.truth_ratio([-math.inf], -math.inf)
    with pytest.raises(InputError, match="at most 0"):
        metrics.truth_ratio([2.0], -1.0)
    with pytest.raises(InputError, match="wrong_logp_means"):
        metrics.truth_ratio([], -1.0)


def test_truth_ratio_score():
    ratios = RNG.lognormal(size=50)
    forget = sum(min(r, 1 / r) for r in ratios) / 50
    keep = sum(max(0.0, 1 - r) for r in ratios) / 50
    assert metrics.truth_ratio_score(ratios, forget=True) == pytest.approx(forget)
    assert metrics.truth_ratio_score(ratios, forget=False) == pytest.approx(keep)
    assert metrics.truth_ratio_score([1.0, 1.0], forget=True) == 1.0
    assert metrics.truth_ratio_score([0.0, math.inf], forget=True) == 0.0
    assert metrics.truth_ratio_score([0.0, math.inf], forget=False) == 0.5
    with pytest.raises(InputError, match="-1"):
        metrics.truth_ratio_score([-1.0], forget=True)


def slow_ks_pvalue(a, b):
    """Two-sample p-value by counting lattice paths that stay closer than the observed distance."""
    n, m = len(a), len(b)
    both = np.concatenate([a, b])
    gap = max(abs(n * np.sum(b <= x) - m * np.sum(a <= x)) for x in both)
    paths = {(0, 0): 1}
    for i in range(n + 1):
        for j in range(m + 1):
            if i or j:
                inside = abs(i * m - j * n) < gap
                total = paths.get((i - 1, j), 0) + paths.get((i, j - 1), 0)
                paths[i, j] = total if inside else 0
    return 1 - paths[n, m] / math.comb(n + m, n)


def test_forget_quality_is_the_exact_two_sample_p_value():
    for shift in (0.0, 0.5, 2.0):
        a, b = RNG.lognormal(size=14), RNG.lognormal(shift, size=11)
        assert metrics.forget_quality(a, b) == pytest.approx(slow_ks_pvalue(a, b), rel=1e-9)
    assert metrics.forget_quality([0.5] * 20, [0.5] * 20) == 1.0
    assert metrics.forget_quality([0.1] * 50, [9.0] * 50) < 1e-20
    assert metrics.forget_quality([0.5], None) is None


def slow_js(p, q):
    mixed = [(x + y) / 2 for x, y in zip(p, q, strict=True)]

    def divergence(x):
        return sum(v * math.log2(v / w) for v, w in zip(x, mixed, strict=True) if v > 0)

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def test_js_distance():
    a, b = RNG.lognormal(size=80), RNG.lognormal(1.0, size=60)
    shares = []
    for ratios in (a, b):
        counts = [0.0] * 8
        for r in ratios:
            counts[min(7, int(8 * r / (1 + r)))] += 1 / len(ratios)
        shares.append(counts)
    assert metrics.js_distance(a, b, bins=8) == pytest.approx(slow_js(*shares), rel=1e-9)
    assert metrics.js_distance(a, b) == pytest.approx(metrics.js_distance(b, a))
    assert metrics.js_distance(a, a[::-1]) == 0.0
    assert metrics.js_distance([0.0], [math.inf]) == pytest.approx(1.0)
    assert metrics.js_distance(a, None) is None
    with pytest.raises(InputError, match="bins=0"):
        metrics.js_distance(a, b, bins=0)


def test_model_utility():
    from scipy.stats import hmean

    values = RNG.uniform(0.01, 1, size=9)
    assert metrics.model_utility(values) == pytest.approx(hmean(values), rel=1e-12)
    assert metrics.model_utility([0.7] * 9) == pytest.approx(0.7)
    assert metrics.model_utility([0.9, 0.0, 0.8]) == 0.0
    assert metrics.model_utility([1e-320, 1.0]) == pytest.approx(2e-320, rel=1e-3)
    for bad in ([], [0.5, -0.1], [math.nan]):
        with pytest.raises(InputError):
            metrics.model_utility(bad)


def test_depth():
    assert metrics.depth(1.0, 1.0, 5.0) == 0.0
    assert metrics.depth(5.0, 1.0, 5.0) == 1.0
    assert metrics.depth([2.0, 4.0], [0.5, 1.5], [6.0, 4.0]) == pytest.approx(0.5)
    assert metrics.depth(0.0, 1.0, 5.0) == -0.25
    assert metrics.depth(math.inf, 1.0, 5.0) == math.inf
    assert metrics.depth(2.0, 1.0, None) is None
    assert metrics.depth(2.0, 1.0, 1.0) is None
    assert metrics.depth(2.0, 1.0, 0.5) is None
    with pytest.raises(InputError, match="nll_gold"):
        metrics.depth(2.0, 1.0, math.inf)


def test_depth_against_a_loop_over_questions():
    rng, missing = np.random.default_rng(12), 0
    for _ in range(100):
        runs = [rng.exponential(2.0, size=rng.integers(1, 9)) for _ in range(3)]
        ours, vanilla, gold = (sum(float(x) for x in run) / len(run) for run in runs)
        if gold <= vanilla:
            assert metrics.depth(*runs) is None
            missing += 1
        else:
            expected = (ours - vanilla) / (gold - vanilla)
            assert metrics.depth(*runs) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert 20 < missing < 80


@pytest.mark.parametrize(
    ("function", "given_values", "name"),
    [
        (metrics.depth, ([], 1.0, 2.0), "nll_unlearned"),
        (metrics.depth, (1.0, [], 2.0), "nll_vanilla"),
        (metrics.depth, (1.0, 1.0, []), "nll_gold"),
        (metrics.modality_alignment, ([], []), "right_multi"),
        (metrics.modality_alignment, ([True], []), "right_text"),
        (metrics.rouge_alignment, ([], []), "rouge_multi"),
        (metrics.rouge_alignment, ([0.5], []), "rouge_text"),
        (metrics.forget_quality, ([], [1.0]), "R_unlearned"),
        (metrics.forget_quality, ([1.0], []), "R_gold"),
        (metrics.js_distance, ([], [1.0]), "R_unlearned"),
        (metrics.js_distance, ([1.0], []), "R_gold"),
        (metrics.loss, ([],), "token_logp"),
        (metrics.zlib, ([], "Oslo"), "token_logp"),
        (metrics.min_k, ([],), "token_logp"),
        (metrics.min_k_plus_plus, ([], [], []), "token_logp"),
        (metrics.order_sensitivity, ([],), "final_scores"),
    ],
)
def test_nothing_to_measure_is_an_error_that_names_it(function, given_values, name):
    with pytest.raises(InputError, match=f"^{name}: found shape"):
        function(*given_values)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_modality_gap_counts_the_questions_right_in_one_condition_only(pairs):
    gained = sum(multi and not text for multi, text in pairs)
    lost = sum(text and not multi for multi, text in pairs)
    accuracies = np.mean(pairs, axis=0)
    assert metrics.modality_gap(*accuracies) == pytest.approx(abs(gained - lost) / len(pairs))


def test_modality_alignment_and_gap():
    multi, text = RNG.random(200) < 0.6, RNG.random(200) < 0.3
    right = sum(bool(a and b) for a, b in zip(multi, text, strict=True)) / 200
    wrong = sum(not a and not b for a, b in zip(multi, text, strict=True)) / 200
    assert metrics.modality_alignment(multi, text) == pytest.approx((right, wrong))
    assert metrics.modality_alignment([1, 1], [True, True]) == (1.0, 0.0)
    assert metrics.modality_alignment([True], [False]) == (0.0, 0.0)
    assert metrics.modality_gap(0.25, 0.75) == metrics.modality_gap(0.75, 0.25) == 0.5
    with pytest.raises(InputError, match="2 right_multi and 1 right_text"):
        metrics.modality_alignment([True, False], [True])


def test_rouge_alignment():
    a, b = RNG.random(40), RNG.random(40)
    a[:5] = b[:5] = 0.0
    rlr = rlf = 0.0
    for x, y in zip(a, b, strict=True):
        if x + y > 0:
            rlr += 2 * x * y / (x + y) / 40
            rlf += (x * x + y * y) / (x + y) / 40
    assert metrics.rouge_alignment(a, b) == pytest.approx((rlr, rlf))
    assert metrics.rouge_alignment([0.0], [0.0]) == (0.0, 0.0)
    assert metrics.rouge_alignment([1.0], [0.0]) == (0.0, 1.0)
    low, high = metrics.rouge_alignment(a, b)
    assert low + high == pytest.approx(np.mean(a + b))
    with pytest.raises(InputError, match="-0.1"):
        metrics.rouge_alignment([-0.1], [0.5])


def test_membership_scores_against_loops():
    for length in (1, 4, 5, 23):
        logp = -RNG.exponential(size=length)
        mu, sigma = -RNG.exponential(size=length), RNG.uniform(0.1, 2, size=length)
        count = max(1, length * 20 // 100)
        standard = [(x - m) / s for x, m, s in zip(logp, mu, sigma, strict=True)]
        assert metrics.loss(logp) == pytest.approx(sum(logp) / length)
        size = len(standard_zlib.compress("São Paulo".encode()))
        assert metrics.zlib(logp, "São Paulo") == pytest.approx(sum(logp) / length / size)
        assert metrics.min_k(logp) == pytest.approx(sum(sorted(logp)[:count]) / count)
        expected = sum(sorted(standard)[:count]) / count
        assert metrics.min_k_plus_plus(logp, mu, sigma) == pytest.approx(expected)


def test_min_k_plus_plus_centres_the_models_own_samples():
    probabilities = np.array([0.5, 0.3, 0.2])
    mu = probabilities @ np.log(probabilities)
    sigma = math.sqrt(probabilities @ (np.log(probabilities) - mu) ** 2)
    tokens = RNG.choice(3, size=50_000, p=probabilities)
    logp = np.log(probabilities)[tokens]
    ones = np.ones_like(logp)
    assert metrics.min_k_plus_plus(logp, mu * ones, sigma * ones, 1.0) == pytest.approx(0, abs=0.02)


@given(st.floats(-20, 0), st.integers(1, 30), st.floats(0.01, 1))
def test_equally_likely_tokens_score_alike_whatever_share_is_kept(value, length, share):
    logp = [value] * length
    size = len(standard_zlib.compress(b"Oslo"))
    assert metrics.loss(logp) == pytest.approx(value)
    assert metrics.zlib(logp, "Oslo") == pytest.approx(value / size)
    assert metrics.min_k(logp, share) == pytest.approx(value)
    found = metrics.min_k_plus_plus(logp, [-3.0] * length, [0.5] * length, share)
    assert found == pytest.approx(2 * (value + 3), abs=1e-12)


@pytest.mark.parametrize("size", [2, 7, 32_000])
def test_a_model_to_which_all_tokens_are_alike_shows_no_membership(size):
    logp = -math.log(size)
    mu = math.fsum([logp / size] * size)
    sigma = math.sqrt(math.fsum([(logp - mu) ** 2 / size] * size))
    found = metrics.min_k_plus_plus([logp] * 5, [mu] * 5, [sigma] * 5)
    assert found == pytest.approx(0.0, abs=1e-6)


def test_membership_ends():
    assert metrics.min_k([-1.0, -2.0, -9.0], share=1.0) == pytest.approx(metrics.loss([-1, -2, -9]))
    assert metrics.min_k(-np.arange(100.0), share=0.29) == pytest.approx(-np.arange(71, 100).mean())
    assert metrics.zlib([-1.0], "") < 0
    assert metrics.min_k_plus_plus([0.0], [0.0], [0.0]) == 0.0
    assert metrics.min_k_plus_plus([-5.0], [0.0], [0.0]) == pytest.approx(-5e6)
    for share in (0.0, 1.5):
        with pytest.raises(InputError, match="share"):
            metrics.min_k([-1.0], share)
    with pytest.raises(InputError, match="2 token_logp, 1 mu"):
        metrics.min_k_plus_plus([-1.0, -1.0], [0.0], [1.0])
    with pytest.raises(InputError, match="sigma"):
        metrics.min_k_plus_plus([-1.0], [0.0], [-1.0])
    with pytest.raises(InputError, match="at most 0"):
        metrics.loss([0.5])


def test_grad_norm():
    parts = [RNG.normal(size=(3, 4)), RNG.normal(size=5)]
    whole = np.concatenate([p.ravel() for p in parts])
    assert metrics.grad_norm(parts) == pytest.approx(-np.linalg.norm(whole))
    assert metrics.grad_norm([]) == 0.0


def test_auc_is_sklearns():
    for rounded in (0, 1, 6):
        inside, outside = RNG.normal(0.4, 1, 37).round(rounded), RNG.normal(size=52).round(rounded)
        expected = roc_auc_score([1] * 37 + [0] * 52, np.concatenate([inside, outside]))
        assert metrics.auc(inside, outside) == pytest.approx(expected, abs=1e-12)
        assert metrics.auc(outside, inside) == pytest.approx(1 - expected, abs=1e-12)
    assert metrics.auc([3.0] * 4, [3.0] * 5) == 0.5
    assert metrics.auc([1.0], [0.0]) == 1.0
    assert metrics.auc([-math.inf], [0.0]) == 0.0
    for bad in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        with pytest.raises(InputError):
            metrics.auc(*bad)


def test_privleak():
    assert metrics.privleak(0.5, 0.5) == 0.0
    assert metrics.privleak(0.9, 0.5) == pytest.approx(-80.0)
    assert metrics.privleak(0.25, 0.5) == pytest.approx(50.0)
    assert metrics.privleak(0.9, None) is None
    assert metrics.privleak(0.9, 1.0) is None
    with pytest.raises(InputError, match="auc_u"):
        metrics.privleak(90.0, 0.5)


def test_privleak_is_the_ratio_of_the_areas_with_the_sides_exchanged():
    rng, missing = np.random.default_rng(13), 0
    for _ in range(60):
        seen, other = (int(n) for n in rng.integers(1, 15, 2))
        flipped, areas = [], []
        for shift in rng.normal(0, 1, 2):
            inside, outside = rng.normal(shift, 1, seen).round(1), rng.normal(size=other).round(1)
            labels = [0] * seen + [1] * other
            flipped.append(roc_auc_score(labels, np.concatenate([inside, outside])))
            areas.append(metrics.auc(inside, outside))
        leak = metrics.privleak(*areas)
        if flipped[1] == 0:
            assert leak is None
            missing += 1
        else:
            expected = 100 * (flipped[0] / flipped[1] - 1)
            assert leak == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert 0 < missing < 20


def test_recovery_area():
    steps = [0, 5, 10, 20, 50, 100]
    ours, theirs = RNG.random(6), RNG.random(6)
    fine = np.linspace(0, 100, 100_001)
    lead = np.interp(fine, steps, ours) - np.interp(fine, steps, theirs)
    assert metrics.recovery_area(steps, ours, theirs) == pytest.approx(lead.mean(), abs=1e-4)
    assert metrics.recovery_area(steps, ours, ours) == 0.0
    assert metrics.recovery_area(steps, theirs + 0.25, theirs) == pytest.approx(0.25)
    assert metrics.recovery_area(steps, ours, None) is None
    for bad in ([0, 5, 5, 20, 50, 100], steps[::-1]):
        with pytest.raises(InputError, match="each above the last"):
            metrics.recovery_area(bad, ours, theirs)
    with pytest.raises(InputError, match="at least two"):
        metrics.recovery_area([0], [1.0], [1.0])


def test_rebound():
    table = RNG.random((6, 6))
    table[np.triu_indices(6, 1)] = np.nan
    expected = [max(table[s][j] - table[j][j] for s in range(j, 6)) for j in range(6)]
    np.testing.assert_allclose(metrics.rebound(table), expected, rtol=0, atol=1e-15)
    assert metrics.rebound([[0.4]]).tolist() == [0.0]
    with pytest.raises(InputError, match=r"\(2, 3\)"):
        metrics.rebound(np.zeros((2, 3)))
    table[4, 2] = np.nan
    with pytest.raises(InputError, match="gap"):
        metrics.rebound(table)


def test_order_sensitivity():
    assert metrics.order_sensitivity([0.3, 0.1, 0.25]) == pytest.approx(0.2)
    assert metrics.order_sensitivity([0.3]) == 0.0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_order_sensitivity_is_the_largest_difference_of_two_orders(scores):
    expected = max(abs(a - b) for a in scores for b in scores)
    assert metrics.order_sensitivity(scores) == pytest.approx(expected, abs=1e-12)


def test_order_sensitivity_refuses_a_score_that_is_missing():
    with pytest.raises(InputError, match="position 1"):
        metrics.order_sensitivity([0.3, math.nan])
