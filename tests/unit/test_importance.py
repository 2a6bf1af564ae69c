"""Importances against the printed formulas, computed with plain Python numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import InputError
from expunge.importance import IMPORTANCE, manu_importance, ratio
from expunge.stats import NeuronStats

EPS = 1e-6
TAU = 0.1


def figures(column):
    """Mean |z|, share over tau, spread about mean |z|, mean square; zeros for no units."""
    n = len(column)
    if not n:
        return 0.0, 0.0, 0.0, 0.0
    mean = sum(abs(z) for z in column) / n
    share = sum(1 for z in column if abs(z) > TAU) / n
    spread = sum((z - mean) ** 2 for z in column) / n
    return mean, share, spread, sum(z * z for z in column) / n


def printed(multi, text, eps=EPS):
    """I_abs, I_freq, I_var and I_rms of one neuron, by the formulas of arXiv 2502.15910."""
    (zm, nm, vm, em), (zt, nt, vt, et) = figures(multi), figures(text)
    return {
        "abs": abs(zm - zt) / (zm + zt + eps),
        "freq": abs(nm - nt) / (nm + nt + eps),
        "var": math.sqrt(vm + vt),
        "rms": math.sqrt(abs(em - et) / (em + et + eps)),
    }


def stats_of(rows, width):
    stats = NeuronStats.zeros(width, TAU)
    if rows:
        stats.update(torch.tensor(rows, dtype=torch.float64))
    return stats


def close(found, wanted, tolerance=1e-9):
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor(wanted, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )


def drawn(seed, units, width, scale):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(width, generator=generator, dtype=torch.float64) * scale
    z = torch.randn(units, width, generator=generator, dtype=torch.float64) * spread
    return (z * (torch.rand(units, width, generator=generator) > 0.2)).tolist()


@given(
    seed=st.integers(0, 10_000),
    units=st.tuples(st.integers(1, 20), st.integers(0, 20)),
    scale=st.sampled_from([0.01, 0.3, 20.0]),
    weights=st.dictionaries(
        st.sampled_from(sorted(IMPORTANCE)), st.floats(-3, 3, allow_subnormal=False), min_size=1
    ),
)
def test_every_importance_and_every_weighting_equals_the_formula(seed, units, scale, weights):
    width = 4
    multi, text = drawn(seed, units[0], width, scale), drawn(seed + 1, units[1], width, scale)
    wanted = [printed([r[n] for r in multi], [r[n] for r in text]) for n in range(width)]
    measured = stats_of(multi, width), stats_of(text, width)
    for name, importance in IMPORTANCE.items():
        close(importance(*measured, EPS), [w[name] for w in wanted])
        close(manu_importance(*measured, {name: 1.0}), [w[name] for w in wanted])
    close(manu_importance(*measured), [sum(w.values()) for w in wanted])
    close(
        manu_importance(*measured, weights),
        [sum(k * w[name] for name, k in weights.items()) for w in wanted],
    )


def test_a_case_by_hand():
    """z = 3, -1 with the image and 1, 0 without: every term worked out on paper."""
    multi, text = stats_of([[3.0], [-1.0]], 1), stats_of([[1.0], [0.0]], 1)
    close(IMPORTANCE["abs"](multi, text, 0.0), [(2 - 0.5) / 2.5])
    close(IMPORTANCE["freq"](multi, text, 0.0), [(1 - 0.5) / 1.5])
    close(IMPORTANCE["var"](multi, text, 0.0), [math.sqrt((1 + 9) / 2 + 0.25)])
    close(IMPORTANCE["rms"](multi, text, 0.0), [math.sqrt((5 - 0.5) / 5.5)])
    total = 0.6 + 1 / 3 + math.sqrt(5.25) + math.sqrt(9 / 11)
    close(manu_importance(multi, text, eps=0.0), [total])


def test_sets_of_different_size_are_compared_per_unit():
    """Twice the same text rows say nothing new, although every sum doubles."""
    multi, text = drawn(1, 8, 3, 0.3), drawn(2, 5, 3, 0.3)
    once = manu_importance(stats_of(multi, 3), stats_of(text, 3))
    close(manu_importance(stats_of(multi, 3), stats_of(text * 2, 3)), once.tolist(), 1e-12)


def test_a_neuron_that_text_never_reaches_differs_by_its_spread_alone():
    rows = [[0.5, -2.0], [1.5, 0.25]]
    multi = stats_of(rows, 2)
    alone = manu_importance(multi, None)
    close(alone, manu_importance(multi, NeuronStats.zeros(2, TAU)).tolist(), 0)
    spread = [figures([r[n] for r in rows])[2] for n in range(2)]
    close(alone, [3 + math.sqrt(v) for v in spread], 1e-5)
    assert (alone < torch.tensor([3 + math.sqrt(v) for v in spread])).all()


def test_conditions_can_be_swapped():
    multi, text = stats_of(drawn(3, 9, 5, 0.3), 5), stats_of(drawn(4, 7, 5, 0.3), 5)
    close(manu_importance(multi, text), manu_importance(text, multi).tolist(), 1e-15)


@pytest.mark.parametrize("units", [0, 4])
def test_silent_neurons_are_finite_and_of_no_importance(units):
    silent = stats_of([[0.0, 0.0]] * units, 2)
    for text in (silent, None):
        assert manu_importance(silent, text).tolist() == [0.0, 0.0]
    score = ratio(manu_importance(silent, None), manu_importance(silent, None), EPS)
    assert score.tolist() == [0.0, 0.0]


def test_huge_and_tiny_activations_stay_finite():
    multi, text = stats_of([[1e150, 1e-160]] * 2, 2), stats_of([[-1e150, 0.0]], 2)
    assert torch.isfinite(manu_importance(multi, text)).all()


def test_the_score_is_forget_over_retain():
    forget = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    retain = torch.tensor([2.0, 0.0, 4.0], dtype=torch.float64)
    close(ratio(forget, retain, 0.5), [1 / 2.5, 4.0, 3 / 4.5], 1e-15)
    close(ratio(forget, retain), [1 / (2 + EPS), 2 / EPS, 3 / (4 + EPS)], 1e-15)


def test_importances_that_do_not_exist_are_refused():
    stats = stats_of([[1.0]], 1)
    with pytest.raises(InputError, match="unknown importance 'frequency'.*'freq'"):
        manu_importance(stats, None, {"frequency": 1.0})
    with pytest.raises(InputError, match="no importance chosen"):
        manu_importance(stats, None, {})
