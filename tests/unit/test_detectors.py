"""Detectors against what they promise, and their solver against a dense one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import detectors
from expunge.detectors import Background, detector


def inputs(seed, number, width, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, width, generator=generator) + shift


def test_a_group_apart_is_found_and_everything_kept_stays_below_it():
    kept = inputs(0, 4000, 32)
    centre = torch.zeros(32)
    centre[3] = 6.0
    found = torch.cat([inputs(1, 40, 32) * 0.3 + centre, inputs(2, 200, 32)])
    background = Background.of(kept)
    row = background.row(detector(background, background.whiten(found))).float()
    assert float((found[:40] @ row).mean()) == pytest.approx(1.0, abs=0.1)
    assert float((found[:40] @ row).min()) > float((kept @ row).max())
    assert row.abs().argmax() == 3


def test_whitened_and_plain_inputs_say_the_same():
    kept, found = inputs(3, 500, 16, 0.5), inputs(4, 30, 16, 1.0)
    background = Background.of(kept)
    assert torch.allclose(background.plain(), kept, atol=1e-4)
    a = detector(background, background.whiten(found))
    row = background.row(a).float()
    assert torch.allclose(background.whiten(found) @ a, found @ row, atol=1e-4)
    whole = kept.double().T @ kept.double() / len(kept)
    ridge = detectors.RIDGE * whole.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert torch.allclose(background.factor @ background.factor.T, whole + ridge)


def test_the_constant_is_the_least_squares_fit_of_one():
    kept = inputs(5, 3000, 8) * 0.1
    kept[:, 0] += 2.0
    background = Background.of(kept)
    ones = kept.double() @ background.constant
    assert float(ones.mean()) == pytest.approx(1.0, abs=0.01)
    assert background.steady > 0.8


@pytest.mark.parametrize("width", [12, detectors.DIRECT + 40])
def test_the_solver_agrees_with_a_dense_one(width):
    x, c = inputs(6, 60, width), torch.rand(60, generator=torch.Generator().manual_seed(7))
    right = inputs(8, width, 2)
    slow = torch.linalg.solve(
        torch.eye(width, dtype=torch.float64) + x.double().T @ torch.diag(c.double()) @ x.double(),
        right.double(),
    )
    assert torch.allclose(detectors._solved(x, c, right).double(), slow, atol=5e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 40),
    st.integers(2, 24),
    st.sampled_from(["plain", "constant", "silent", "same"]),
)
def test_degenerate_inputs_give_finite_rows(seed, number, width, kind):
    """Fewer positions than features, a constant feature, one that never varies, all alike."""
    kept, found = inputs(seed, number, width), inputs(seed + 1, 5, width)
    if kind == "constant":
        kept[:, 0] = found[:, 0] = 1.0
    if kind == "silent":
        kept[:, -1] = found[:, -1] = 0.0
    if kind == "same":
        kept, found = kept[:1].repeat(number, 1), found[:1].repeat(5, 1)
    background = Background.of(kept)
    a = detector(background, background.whiten(found))
    assert torch.isfinite(background.row(a)).all()
