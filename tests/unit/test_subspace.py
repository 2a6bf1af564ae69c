"""The forget/retain filter against closed forms and a general eigensolver."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge import subspace
from expunge.errors import InputError
from expunge.subspace import compressed, conditioned, directions, lowrank_edit, shares, views


def moments(seed, width=24, forget_rows=9, retain_rows=60):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width))
    forget = rng.normal(size=(forget_rows, width)) @ mix
    retain = rng.normal(size=(retain_rows, width))
    as_moment = [torch.from_numpy(z.T @ z / len(z)) for z in (forget, retain)]
    return as_moment[0], as_moment[1], torch.from_numpy(rng.normal(size=(7, width)))


@pytest.mark.parametrize("mu", [0.1, 1.0, 30.0])
def test_soft_filter_is_the_minimiser_in_closed_form(mu):
    forget, retain, weight = moments(0)
    found = directions(forget, retain, ridge=0.2, number=24)
    a, b = lowrank_edit(weight, found, shares(found.ratio, mu))
    base = conditioned(retain, 0.2, 1e-6 * float(forget.diagonal().max()))
    expected = weight @ base @ torch.linalg.inv(base + mu * forget)
    assert torch.allclose(weight + (a.double() @ b.double()), expected, atol=1e-5)


def test_soft_filter_beats_every_nearby_edit_on_its_objective():
    forget, retain, weight = moments(1)
    mu = 0.7
    found = directions(forget, retain, ridge=0.2, number=24)
    a, b = lowrank_edit(weight, found, shares(found.ratio, mu))
    base = conditioned(retain, 0.2, 1e-6 * float(forget.diagonal().max()))

    def objective(change):
        edited = weight + change
        return float((change @ base @ change.T).trace() + mu * (edited @ forget @ edited.T).trace())

    best = objective(a.double() @ b.double())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nudge = 1e-2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert objective(a.double() @ b.double() + nudge) > best


def test_directions_equal_scipys_generalised_eigenvectors():
    forget, retain, _ = moments(2)
    base = conditioned(retain, 0.3, 1e-6 * float(forget.diagonal().max()))
    values = scipy.linalg.eigh(forget.numpy(), base.numpy(), eigvals_only=True)[::-1]
    found = directions(forget, retain, ridge=0.3, number=10)
    assert np.allclose(found.ratio.numpy(), values[:10], rtol=1e-9)
    gram = found.read @ base @ found.read.T
    assert torch.allclose(gram, torch.eye(10, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(base @ found.read.T, found.write, atol=1e-9)


def test_iterated_solver_equals_the_exact_one(monkeypatch):
    forget, retain, weight = moments(3, width=64, forget_rows=12, retain_rows=200)
    exact = directions(forget, retain, number=8)
    monkeypatch.setattr(subspace, "EXACT_WIDTH", 10)
    fast = directions(forget, retain, number=8)
    assert torch.allclose(exact.ratio, fast.ratio, rtol=1e-8)
    edits = [lowrank_edit(weight[:, :1].expand(7, 64), d, torch.ones(8)) for d in (exact, fast)]
    assert torch.allclose(edits[0][0] @ edits[0][1], edits[1][0] @ edits[1][1], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("massive", "retain_rows"), [(0.0, 900), (1e3, 40)])
def test_iterated_solver_stands_ill_conditioned_wide_moments(dtype, massive, retain_rows):
    """Fewer tokens than neurons, a constant, dead or massive neuron: against float64 and scipy."""
    rng = np.random.default_rng(5)
    width, number = 1100, 16
    assert width > subspace.EXACT_WIDTH
    scale = np.exp(rng.normal(size=width))
    exact = []
    for rows in (60, retain_rows):
        z = rng.normal(size=(rows, width)) * scale
        z[:, 0], z[:, 1], z[:, 2] = 3.0, 0.0, z[:, 2] + massive
        exact.append(torch.from_numpy(z.T @ z / rows))
    forget, retain = exact
    found = directions(forget.to(dtype), retain.to(dtype), number=number)
    floor = 1e-6 * float(forget.diagonal().max())
    base = conditioned(retain.to(dtype), 0.3, floor).double()
    values = scipy.linalg.eigh(
        forget.numpy(), base.numpy(), eigvals_only=True, subset_by_index=[width - 16, width - 1]
    )
    loose = 1e-6 if dtype == torch.float64 else 1e-2
    assert np.allclose(found.ratio.double().numpy(), values[::-1], rtol=loose)
    assert torch.allclose(found.read @ found.write, torch.eye(number, dtype=dtype), atol=loose)
    assert float(found.read[:, 1].abs().max()) < 1e-3  # the neuron that never fires is let be


def test_a_moment_that_float32_makes_indefinite_is_solved():
    rng = np.random.default_rng(6)
    z = torch.from_numpy(rng.normal(size=(3, 1500)) * 1e-3 + 1.0).float()
    moment = z.T @ z / 3
    assert torch.linalg.cholesky_ex(conditioned(moment, 1e-9)).info > 0
    found = directions(moment, moment, ridge=1e-9, number=4)
    assert found.ratio[0] == pytest.approx(1.0, abs=0.01)
    assert all(torch.isfinite(t).all() for t in (found.ratio, found.read, found.write))


def test_axis_aligned_directions_are_neuron_pruning():
    forget = torch.diag(torch.tensor([5.0, 0.1, 3.0, 0.2], dtype=torch.float64))
    retain = torch.eye(4, dtype=torch.float64)
    weight = torch.arange(12, dtype=torch.float64).reshape(3, 4) + 1
    found = directions(forget, retain, ridge=0.1, number=2)
    a, b = lowrank_edit(weight, found, torch.ones(2))
    expected = weight.clone()
    expected[:, [0, 2]] = 0
    assert torch.allclose(weight + (a @ b).double(), expected, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(0, 12),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-6, 6),
    st.booleans(),
)
def test_ill_conditioned_moments_give_finite_edits(
    seed, forget_rows, retain_rows, dtype, power, iterated
):
    """Fewer tokens than neurons, constant neurons, neurons that never fire, wild scales."""
    rng = np.random.default_rng(seed)
    width = 16
    z_f, z_r = (rng.normal(size=(n, width)) * 10**power for n in (forget_rows, retain_rows))
    for z in (z_f, z_r):
        z[:, 0], z[:, 1] = 3.0 * 10**power, 0.0
    forget, retain = (torch.from_numpy(z.T @ z / max(len(z), 1)).to(dtype) for z in (z_f, z_r))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subspace, "EXACT_WIDTH", 0 if iterated else width)
        found = directions(forget, retain, number=8)
    weight = torch.from_numpy(rng.normal(size=(5, width))).to(dtype)
    a, b = lowrank_edit(weight, found, shares(found.ratio, 1.0))
    change = a.double() @ b.double()
    assert torch.isfinite(change).all()
    # the filter only shrinks: on forget activations the output energy never grows
    before = (weight.double() @ forget.double() @ weight.double().T).trace()
    after = ((weight.double() + change) @ forget.double() @ (weight.double() + change).T).trace()
    assert after <= before * (1 + 1e-3) + 1e-12
    rounding = 1e-4 if dtype == torch.float64 else 3e-2
    assert float(change[:, 1].abs().max()) < rounding  # the neuron that never fires is let be


def test_compression_error_is_what_it_says():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(*s, generator=generator) for s in ((30, 12), (12, 40)))
    left, right, error = compressed(a, b, energy=0.8)
    assert left.shape[1] < 12
    exact = a.double() @ b.double()
    measured = float((exact - left.double() @ right.double()).norm() / exact.norm())
    assert measured == pytest.approx(error, abs=1e-5)
    assert measured**2 <= 0.2
    singular = np.linalg.svd(exact.numpy(), compute_uv=False)
    best = (singular[left.shape[1] :] ** 2).sum() / (singular**2).sum()
    assert measured**2 == pytest.approx(best, abs=1e-5)


def test_compression_of_nothing_is_nothing():
    left, right, error = compressed(torch.zeros(4, 3), torch.ones(3, 5))
    assert left.shape == (4, 0) and right.shape == (0, 5) and error == 0


def test_moments_that_are_not_finite_are_refused():
    forget, retain, _ = moments(4)
    forget[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        directions(forget, retain)


def test_views_in_a_space_of_full_width_are_the_eigenproblem_of_their_sum():
    generator = torch.Generator().manual_seed(3)

    def some(rank):
        z = torch.randn(12, rank, generator=generator, dtype=torch.float64)
        return z @ z.T / rank

    one, two, retain = some(3), some(5), some(40)
    seen = views({"one": one, "two": two}, retain, ridge=0.1, number=12)
    for weights in ({"one": 1.0, "two": 0.25}, {"two": 3.0}, {"one": 2.0, "absent": 9.0}):
        parts = {"one": one, "two": two}
        total = sum(w * parts[n] for n, w in weights.items() if n in parts)
        found, exact = seen.weighted(weights), directions(total, retain, ridge=0.1, number=12)
        torch.testing.assert_close(found.ratio, exact.ratio, rtol=1e-5, atol=1e-5)
        for i in range(3):  # a direction's sign is free
            assert abs(float(found.read[i] @ exact.write[:, i])) == pytest.approx(1, abs=1e-4)
    assert seen.top("one") == pytest.approx(
        float(directions(one, retain, ridge=0.1, number=1).ratio[0]), rel=1e-5
    )
    assert len(seen.weighted({"absent": 1.0}).ratio) == 0


def test_a_narrow_space_keeps_what_leads_in_any_view():
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    retain = torch.eye(60, dtype=torch.float64)
    seen = views({"a": torch.outer(a, a), "b": torch.outer(b, b)}, retain, ridge=0.0, number=2)
    assert seen.top("a") == pytest.approx(float(a @ a), rel=1e-4)
    assert seen.top("b") == pytest.approx(float(b @ b), rel=1e-4)


def test_shares_rise_from_nothing_to_all_and_faster_with_power():
    ratio = torch.tensor([0.0, 0.5, 1.0, 2.0, 1e9], dtype=torch.float64)
    for power in (1.0, 2.0, 4.0):
        expected = [0.0, *(1 / (1 + (1 / (0.5 * float(r))) ** power) for r in ratio[1:])]
        assert shares(ratio, 0.5, power).tolist() == pytest.approx(expected, rel=1e-9)
