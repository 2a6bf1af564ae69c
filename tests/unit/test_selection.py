"""Selection against a plain sort, and what it promises about ties, towers and bad input."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import InputError
from expunge.selection import check_budget, select

KEYS = ("vision.0", "vision.1", "language.0", "language.10", "language.2")
BUDGETS = st.integers(0, 100).map(lambda percent: percent / 100)


def tensors(scores):
    return {key: torch.tensor(values, dtype=torch.float64) for key, values in scores.items()}


def lists(chosen):
    return {key: index.tolist() for key, index in chosen.items()}


def slow(scores, budget):
    """Take one neuron after another: highest score, then first site, then lowest index."""
    left = [
        (-value, place, index, key)
        for place, (key, values) in enumerate(scores.items())
        for index, value in enumerate(values)
    ]
    number = math.floor(Fraction(str(budget)) * len(left))
    found = {key: [] for key in scores}
    for _, _, index, key in sorted(left)[:number]:
        found[key].append(index)
    return {key: sorted(index) for key, index in found.items() if index}


@st.composite
def score_tables(draw):
    keys = draw(st.permutations(KEYS))[: draw(st.integers(1, len(KEYS)))]
    value = st.integers(-3, 3).map(float)  # few values: many ties
    return {key: draw(st.lists(value, max_size=12)) for key in keys}


@given(scores=score_tables(), budget=BUDGETS)
def test_one_ranking_equals_a_plain_sort(scores, budget):
    chosen = select(tensors(scores), budget)
    assert lists(chosen) == slow(scores, budget)
    assert list(chosen) == [key for key in scores if key in chosen]
    assert all(index.dtype == torch.int64 for index in chosen.values())


@given(scores=score_tables(), budget=BUDGETS)
def test_each_tower_by_itself_equals_two_rankings(scores, budget):
    apart = {}
    for tower in ("vision", "language"):
        apart |= slow({k: v for k, v in scores.items() if k.startswith(tower)}, budget)
    assert lists(select(tensors(scores), budget, per_tower=True)) == apart


@given(scores=score_tables(), budgets=st.tuples(BUDGETS, BUDGETS))
def test_a_larger_budget_keeps_what_a_smaller_one_chose(scores, budgets):
    small, large = (lists(select(tensors(scores), b)) for b in sorted(budgets))
    assert all(set(index) <= set(large.get(key, [])) for key, index in small.items())


def test_ties_fall_to_the_first_site_in_the_mapping_then_to_the_lowest_index():
    equal = [1.0] * 4
    assert lists(select(tensors({"b.0": equal, "a.0": equal}), 0.75)) == {
        "b.0": [0, 1, 2, 3],
        "a.0": [0, 1],
    }
    assert lists(select(tensors({"a.0": equal, "b.0": equal}), 0.25)) == {"a.0": [0, 1]}


def test_ties_across_many_neurons_are_broken_the_same_way():
    """Long inputs take another path in a sort than short ones."""
    scores = {"a.0": torch.zeros(5000), "b.0": torch.zeros(5000)}
    scores["b.0"][4321] = 1.0
    chosen = select(scores, 0.0101)
    assert chosen["b.0"].tolist() == [4321] and chosen["a.0"].tolist() == list(range(100))


@pytest.mark.parametrize(
    ("budget", "width", "number"),
    [(0.29, 100, 29), (0.02, 149, 2), (0.02, 150, 3), (0.07, 100, 7), (1, 5, 5), (0.999, 5, 4)],
)
def test_the_number_is_rounded_down_in_decimal_not_in_binary(budget, width, number):
    """0.29 * 100 is 28.999999999999996 in floating point, and 29 neurons are meant."""
    assert select({"a.0": torch.arange(width).double()}, budget)["a.0"].numel() == number


def test_nothing_and_everything():
    scores = tensors({"a.0": [1.0, 2.0], "b.0": [0.0]})
    assert select(scores, 0.0) == {} and select({}, 0.5) == {}
    assert lists(select(scores, 1.0)) == {"a.0": [0, 1], "b.0": [0]}


def test_infinite_scores_rank_first_and_last():
    scores = tensors({"a.0": [math.inf, -math.inf, 5.0, 0.0]})
    assert lists(select(scores, 0.25)) == {"a.0": [0]}
    assert lists(select(scores, 0.75)) == {"a.0": [0, 2, 3]}


def test_scores_that_are_no_numbers_are_refused_by_site():
    scores = tensors({"vision.0": [1.0], "language.3": [0.0, math.nan]})
    for per_tower in (False, True):
        with pytest.raises(InputError, match=r"language\.3 are not numbers"):
            select(scores, 0.5, per_tower=per_tower)


@pytest.mark.parametrize("budget", [-0.01, 1.01, 2, math.nan, math.inf, "0.1", None])
def test_budgets_that_are_no_share_are_refused(budget):
    with pytest.raises(InputError, match=f"budget is {budget}, expected a share.*2 %"):
        select(tensors({"a.0": [1.0]}), budget)
    with pytest.raises(InputError):
        check_budget(budget)


def test_a_share_passes():
    assert [check_budget(b) for b in (0, 0.02, 1)] == [0.0, 0.02, 1.0]
