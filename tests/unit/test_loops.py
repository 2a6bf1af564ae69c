"""Sums in one reading against float64 sums of torch, whatever the threads and the precision."""

from __future__ import annotations

import pytest
import torch

from expunge import stats
from expunge.stats import NEURON_FIELDS, NeuronStats

loops = pytest.importorskip("expunge.loops", reason="Numba is not installed")


def drawn(rows, width, dtype):
    generator = torch.Generator().manual_seed(rows)
    z = (torch.randn(rows, width, generator=generator) * 0.3).to(dtype)
    z[0, 0] = 0.1  # in float32 just above the float64 number
    return z


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (127, 5), (700, 33)])
def test_sums_of_every_precision_and_of_chosen_rows(shape, dtype):
    z = drawn(*shape, dtype)
    for places in (None, torch.arange(0, shape[0], 3)):
        exact = (z if places is None else z[places]).double()
        wanted = [exact.sum(0), exact.abs().sum(0), (exact.abs() > 0.1).sum(0), (exact**2).sum(0)]
        found = loops.neuron_sums(z, 0.1, places)
        torch.testing.assert_close(
            found, torch.stack([w.double() for w in wanted]), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("rows", [3, 4])
def test_what_is_not_finite_stays_what_it_is(rows):
    z = torch.zeros(rows, 2)
    z[-1, 0] = float("inf")
    total, absolute, over, square = loops.neuron_sums(z, -0.1)
    assert total[0] == absolute[0] == square[0] == float("inf")
    assert over.tolist() == [rows, rows] and not total[1] and not square[1]


def test_threads_do_not_matter():
    z, before = drawn(1000, 7, torch.float32), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(loops.neuron_sums(z, 0.1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_statistics_use_it_where_there_is_much_and_are_the_same(monkeypatch):
    z, mask = drawn(300, 40, torch.float32), torch.arange(300) % 4 > 0
    found = []
    for large in (1 << 20, 0):
        monkeypatch.setattr(stats, "LARGE", large)
        each = NeuronStats.zeros(40)
        each.update(z, mask, times=2)
        each.update(z.T.contiguous().T)  # not in memory row by row
        found.append(each)
    one, two = found
    assert one.count == two.count == 2 * 225 + 300
    for name in NEURON_FIELDS:
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-12, atol=1e-12)
