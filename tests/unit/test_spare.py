"""Neurons that can be given up, and what the others say in their stead."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.linear_model import Ridge

from expunge.methods import chain
from expunge.methods.chain import together
from expunge.methods.spare import AT_ONCE, ENOUGH, HEARD, LARGEST_SHARE, RIDGE, Spare, moment_of
from expunge.plan import SiteEdit
from expunge.rewire import Rewire

WIDTH, OUT, SEEN = 48, 10, 190


@pytest.fixture
def site():
    """Weights out and what correlated neurons of uneven loudness say, the last of them nothing."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    z = drawn(SEEN, 20) @ drawn(20, WIDTH) * torch.linspace(1, 4, WIDTH)
    z[:, -1] = 0
    return drawn(OUT, WIDTH), z


def spare_of(weight, z):
    return Spare.of(weight, z.square().mean(0).sqrt(), moment_of(lambda x: x, [z], WIDTH))


def test_the_least_used_can_be_given_up_and_those_that_say_nothing_first(site):
    weight, z = site
    spare = spare_of(weight, z)
    slow = [
        float((z[:, i].double() ** 2).mean() ** 0.5 * weight[:, i].double().norm())
        for i in range(WIDTH)
    ]
    assert (
        spare.pool.tolist() == sorted(range(WIDTH), key=slow.__getitem__)[: WIDTH // LARGEST_SHARE]
    )
    assert spare.pool[0] == WIDTH - 1
    assert spare.size == pytest.approx(float(weight.norm(dim=0).median()))


@pytest.mark.parametrize("number", [1, 4, 6])
def test_what_they_say_is_foretold_as_ridge_regression_does(site, number):
    weight, z = site
    spare = spare_of(weight, z)
    out, foretold = spare.stand_in(number)
    gone = sorted(spare.pool[:number].tolist())
    stay = [i for i in range(WIDTH) if i not in gone]
    alpha = RIDGE * float(z.double().square().mean()) * SEEN
    told = Ridge(alpha=alpha, fit_intercept=False).fit(z[:, stay].double(), z[:, gone].double())
    slow = torch.as_tensor(told.coef_).reshape(number, len(stay)).float()
    torch.testing.assert_close(foretold[:, stay], slow, atol=1e-5, rtol=1e-4)
    assert out.shape == (OUT, number)
    assert not foretold[:, gone].any()


@pytest.mark.parametrize("quiet", [0.003, 0.03, 0.3])
def test_directions_in_which_it_would_not_be_heard_are_left_out(site, quiet):
    """Against the generalised eigenproblem of what would be added and what the site writes."""
    weight, z = site
    z[:, ::4] *= quiet
    spare = spare_of(weight, z)
    out, foretold = (each.double().numpy() for each in spare.stand_in(6))
    gone = np.sort(spare.pool[:6].numpy())
    moment = (z.double().T @ z.double() / SEEN).numpy()
    moment += RIDGE * np.trace(moment) / WIDTH * np.eye(WIDTH)
    written = weight.double().numpy() @ moment @ weight.double().numpy().T
    before = foretold @ moment @ foretold.T

    def shares(w):
        return scipy.linalg.eigvalsh(w @ before @ w.T, written)

    whole = weight.double().numpy()[:, gone]
    heard = int((shares(whole) > HEARD**2).sum())
    assert np.linalg.matrix_rank(out, 1e-4 * np.linalg.norm(whole)) == heard
    assert shares(whole - out)[-1] <= HEARD**2
    assert shares(out) == pytest.approx(np.where(np.arange(OUT) < OUT - heard, 0, shares(whole)))


def test_others_make_up_for_them(site):
    weight, z = site
    out, foretold = spare_of(weight, z).stand_in(6)
    gone = foretold.eq(0).all(0)
    left = z.clone()
    left[:, gone] = 0
    lost = ((z - left) @ weight.T).norm()
    assert ((z @ weight.T) - left @ (weight + out @ foretold).T).norm() < 0.5 * lost


def test_the_second_moment_is_the_mean_of_that_of_each_set():
    """Against float64; of a large set evenly spread ones are read, in several parts."""
    generator = torch.Generator().manual_seed(1)
    width = AT_ONCE // ENOUGH
    small, large = (torch.randn(n, 3, generator=generator) for n in (50, 5 * ENOUGH * width))
    calls = []

    def said(x):
        calls.append(len(x))
        return torch.cat([x, torch.zeros(len(x), width - 3)], 1)

    found = moment_of(said, [small, large, large[: AT_ONCE + 5]], width)
    assert calls == [50, AT_ONCE, AT_ONCE, 5]
    sets = [small, large[::5], large[: AT_ONCE + 5]]
    slow = sum(x.T.double() @ x.double() / len(x) for x in sets)
    torch.testing.assert_close(found[:3, :3], slow, atol=1e-4, rtol=1e-4)
    assert not found[3:].any()


def test_a_site_that_says_nothing_and_one_seen_once_are_finite(site):
    weight, z = site
    for seen in (torch.zeros(5, WIDTH), z[:1]):
        out, foretold = spare_of(weight, seen).stand_in(6)
        assert out.isfinite().all() and foretold.isfinite().all()


def test_what_is_taken_out_beforehand_is_not_put_back(site, monkeypatch):
    weight, z = site
    out, foretold = spare_of(weight, z).stand_in(4)
    gone = foretold.eq(0).all(0).nonzero()[:, 0]
    a, b = torch.randn(OUT, 3).half(), torch.randn(3, WIDTH).half()
    none = torch.zeros(4)
    new = Rewire(gone, torch.zeros(4, 9), none, none, torch.zeros(OUT, 4), gone)
    edits = {"a": SiteEdit(lowrank=(a, b)), "b": SiteEdit(lowrank=(a, b))}
    fresh = {"a": SiteEdit(lowrank=(out, foretold), rewire=new)}
    both = together(edits, fresh)
    assert both["b"] is edits["b"]
    assert all(map(torch.equal, both["a"].lowrank, both["a"].gridded().lowrank))
    assert torch.equal(both["a"].rewire.index, gone)
    left = weight + a.float() @ b.float()
    slow = left + left[:, gone] @ foretold
    stay = foretold.ne(0).any(0)

    def made(edit):
        first, second = (factor.float() for factor in edit.lowrank)
        return weight + first @ second

    lost = (made(both["a"]) - slow)[:, stay].norm()
    assert lost <= 0.15 * (slow - weight).norm()  # 0.99 of the energy, on a grid
    monkeypatch.setattr(chain, "ENERGY", 1.0)  # then all of it
    monkeypatch.setattr(SiteEdit, "gridded", lambda edit: edit)
    whole = made(together(edits, fresh)["a"])
    torch.testing.assert_close(whole[:, stay], slow[:, stay], atol=1e-4, rtol=1e-4)
