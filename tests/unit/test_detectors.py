"""Detectors against what they promise, and their solver against a dense one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import detectors as module
from expunge.detectors import Background, detectors
from expunge.methods.base import Fit
from expunge.methods.neurons import STEADY, Place
from expunge.methods.seek import AT_ONCE, Seeker
from expunge.methods.spare import Spare
from expunge.methods.swap import Usual


def inputs(seed, number, width, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, width, generator=generator) + shift


def test_a_group_apart_is_found_and_everything_kept_stays_below_it():
    kept = inputs(0, 4000, 32)
    centre = torch.zeros(32)
    centre[3] = 6.0
    found = torch.cat([inputs(1, 40, 32) * 0.3 + centre, inputs(2, 200, 32)])
    background = Background.of(kept)
    row = background.row(detectors(background, [background.whiten(found)])[0]).float()
    assert float((found[:40] @ row).mean()) == pytest.approx(1.0, abs=0.1)
    assert float((found[:40] @ row).min()) > float((kept @ row).max())
    assert row.abs().argmax() == 3


def test_whitened_and_plain_inputs_say_the_same():
    kept, found = inputs(3, 500, 16, 0.5), inputs(4, 30, 16, 1.0)
    background = Background.of(kept)
    a = detectors(background, [background.whiten(found)])[0]
    row = background.row(a).float()
    assert torch.allclose(background.whiten(found) @ a, found @ row, atol=1e-4)
    assert torch.allclose(background.kept @ a, kept @ row, atol=1e-4)
    whole = kept.double().T @ kept.double() / len(kept)
    ridge = module.RIDGE * whole.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert torch.allclose(background.factor @ background.factor.T, whole + ridge)


def test_the_constant_is_the_least_squares_fit_of_one():
    kept = inputs(5, 3000, 8) * 0.1
    kept[:, 0] += 2.0
    background = Background.of(kept)
    ones = kept.double() @ background.constant
    assert float(ones.mean()) == pytest.approx(1.0, abs=0.01)
    assert background.steady > 0.8


@pytest.mark.parametrize(
    ("width", "number", "calls"),
    [(12, 60, 1), (module.DIRECT + 40, 60, 0), (module.DIRECT + 40, module.DIRECT + 40, 1)],
)
def test_the_solver_agrees_with_a_dense_one(width, number, calls, monkeypatch):
    """Two problems at once, of which the second has fewer inputs; directly or step by step."""
    directly = []
    solve = torch.cholesky_solve
    monkeypatch.setattr(torch, "cholesky_solve", lambda *a: directly.append(1) or solve(*a))
    x = torch.stack([inputs(6, number, width), inputs(7, number, width)])
    c = torch.rand(2, number, generator=torch.Generator().manual_seed(7))
    c[1, 20:] = 0.0
    right = torch.stack([inputs(8, width, 2), inputs(9, width, 2)])
    found = module._solved(x, c, right).double()
    assert len(directly) == calls
    for i in range(2):
        gram = x[i].double().T @ torch.diag(c[i].double()) @ x[i].double()
        slow = torch.linalg.solve(torch.eye(width) + gram, right[i].double())
        assert torch.allclose(found[i], slow, atol=5e-3)


@pytest.mark.parametrize("number", [5, module.LANCZOS - 1, module.LANCZOS + 20, 300])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_the_leading_direction_is_that_of_a_singular_value_decomposition(number, scale):
    found = scale * inputs(11, number, module.LANCZOS + 30, 0.3)
    top = torch.linalg.svd(found.double()).Vh[0]
    vector = module._leading(found).double()
    assert torch.isfinite(vector).all()
    if scale:
        assert float((vector @ top).abs()) == pytest.approx(1.0, abs=1e-6)


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
    a = detectors(background, [background.whiten(found)])[0]
    assert torch.isfinite(background.row(a)).all()


def test_groups_together_give_the_detectors_of_each_alone():
    background = Background.of(inputs(9, 3000, 24))
    groups = [background.whiten(inputs(10 + i, 5 + 30 * i, 24, 0.5 * i)) for i in range(4)]
    together = detectors(background, groups)
    alone = torch.cat([detectors(background, [group]) for group in groups])
    assert torch.allclose(together, alone, atol=1e-4)
    assert float((together - together[0]).abs()[1:].amax(1).min()) > 0.01


@pytest.mark.parametrize("steady", [False, True])
def test_the_greatest_level_is_that_of_a_loop_over_what_is_kept_and_unseen(steady):
    """With a bias levels are plain products, without one they are over the constant's."""
    kept = inputs(20, 400, 12)
    kept[:, 0] = kept[:, 0] * 0.05 + 2.0
    background = Background.of(kept)
    constant = background.constant.float() if steady else None
    none = torch.eye(4)
    spare = Spare(torch.arange(4), torch.zeros(5, 4), none, none.double(), none.double(), 1.0)
    place = Place(Fit(gated=True, bias=not steady), constant, spare)
    background = Background.of(place.over_ones(kept))
    groups = [inputs(21 + i, 6, 12, 1.0) for i in range(AT_ONCE + 2)]
    unseen = torch.cat([kept[:1], 3 * kept[1:9]])
    found = Seeker(None, background, unseen, place, Usual(background, {}))._detectors(groups)
    assert len(found) == len(groups)
    louder = 0
    for row, most in found:
        every = torch.cat([kept, unseen])
        ones = [float(x @ constant) if steady else 1.0 for x in every]
        slow = [float(x @ row) / max(one, STEADY / 10) for x, one in zip(every, ones, strict=True)]
        assert most == pytest.approx(max(slow), abs=1e-4)
        louder += max(slow) > max(slow[: len(kept)]) + 0.01
    assert steady or louder > len(groups) / 2
