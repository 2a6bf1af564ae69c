"""Streaming statistics against plain float64 loops, and what must not change them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.spawn import spawn

from expunge.errors import InputError
from expunge.stats import NeuronStats, SecondMoment, load_stats, save_stats

SUMS = ("total", "absolute", "over", "square")


def activations(seed, *shape, dtype=torch.float32, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype)


def slow_sums(rows, tau):
    """The four sums of each column, one number at a time, with no rounding at all."""
    columns = list(zip(*rows, strict=True))
    exact = [[Fraction(z) for z in column] for column in columns]
    return {
        "total": [float(sum(c)) for c in exact],
        "absolute": [float(sum(abs(z) for z in c)) for c in exact],
        "over": [float(sum(abs(z) > Fraction(tau) for z in c)) for c in exact],
        "square": [float(sum(z * z for z in c)) for c in exact],
    }


def slow_moment(rows):
    width = len(rows[0])
    return [[math.fsum(r[i] * r[j] for r in rows) for j in range(width)] for i in range(width)]


def close(found, wanted, relative=1e-14, absolute=1e-14):
    torch.testing.assert_close(
        found, torch.as_tensor(wanted, dtype=torch.float64), rtol=relative, atol=absolute
    )


def same(one, other, **tolerance):
    assert one.count == other.count
    for name in SUMS:
        close(getattr(one, name), getattr(other, name), **tolerance)


def stats_of(z, mask=None, tau=0.1):
    stats = NeuronStats.zeros(z.shape[-1], tau)
    stats.update(z, mask)
    return stats


def moment_of(z, mask=None):
    moment = SecondMoment.zeros(z.shape[-1])
    moment.update(z, mask)
    return moment


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sums_equal_exact_loops_in_every_precision(dtype):
    z = activations(0, 3, 7, 5, dtype=dtype)
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    stats = stats_of(z, mask)
    counted = z[mask].double().tolist()
    assert stats.count == len(counted) < 21
    for name, wanted in slow_sums(counted, 0.1).items():
        assert getattr(stats, name).dtype == torch.float64
        close(getattr(stats, name), wanted)


@pytest.mark.parametrize("width", [255, 256, 257, 600, 1600])
def test_second_moments_of_wide_sites_are_whole_whenever_they_are_read(width):
    """They are summed in panels; what is below the diagonal comes when it is asked for."""
    z = activations(11, 12, width)
    moment, exact = moment_of(z[:5]), z.double()
    torch.testing.assert_close(moment.outer, exact[:5].T @ exact[:5], rtol=1e-5, atol=1e-6)
    moment.update(z[5:])
    for found in (moment.outer, moment.mean * 12, moment.tensors()["outer"]):
        torch.testing.assert_close(found, exact.T @ exact, rtol=1e-5, atol=1e-6)
        assert torch.equal(found, found.T)
    both = moment_of(z[:5]).merge(moment_of(z[5:]))
    torch.testing.assert_close(both.outer, moment.outer, rtol=1e-12, atol=1e-12)


def test_rows_that_count_several_times():
    z = activations(8, 6, 5, dtype=torch.float64)
    stats, moment = stats_of(z[:2]), moment_of(z[:2])
    stats.update(z[2:], times=3)
    moment.update(z[2:], times=3)
    repeated = torch.cat([z[:2], z[2:], z[2:], z[2:]])
    same(stats, stats_of(repeated))
    assert moment.count == len(repeated)
    close(moment.outer, slow_moment(repeated.tolist()))


def test_derived_figures_follow_their_definitions():
    rows = activations(2, 50, 4, dtype=torch.float64).tolist()
    stats = stats_of(torch.tensor(rows, dtype=torch.float64), tau=0.25)
    for n in range(4):
        column = [r[n] for r in rows]
        mean, mean_abs = sum(column) / 50, sum(abs(z) for z in column) / 50
        close(stats.mean_abs[n], mean_abs)
        close(stats.share_over[n], sum(abs(z) > 0.25 for z in column) / 50)
        close(stats.mean_square[n], sum(z * z for z in column) / 50)
        close(stats.variance_about_mean_abs[n], sum((z - mean_abs) ** 2 for z in column) / 50)
        close(stats.std[n], math.sqrt(sum((z - mean) ** 2 for z in column) / 50))


def test_a_value_at_the_threshold_does_not_count_and_the_sign_does_not_matter():
    z = torch.tensor([[0.5], [-0.5], [0.75], [-0.75]])
    assert stats_of(z, tau=0.5).over.tolist() == [2.0]


def test_threshold_is_compared_without_rounding():
    """The float32 number nearest to 0.1 is above the float64 number 0.1."""
    nearest = torch.tensor([[0.1]])
    assert Fraction(nearest.item()) > Fraction(0.1)
    assert stats_of(nearest).over.tolist() == [1.0]


def test_a_constant_neuron_has_no_spread():
    stats = stats_of(torch.full((1000, 1), 0.1234567))
    assert 0 <= stats.std.item() < 1e-7
    assert 0 <= stats.variance_about_mean_abs.item() < 1e-14


def test_nothing_counted_gives_zeros():
    stats = stats_of(torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert stats.count == 0
    for figure in (stats.mean_abs, stats.share_over, stats.mean_square, stats.std):
        assert figure.tolist() == [0.0] * 4
    assert moment_of(torch.ones(0, 4)).mean.tolist() == [[0.0] * 4] * 4


def test_masked_positions_never_count_whatever_they_hold():
    z = activations(3, 2, 6, 4)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    dirty = z.clone()
    dirty[~mask] = torch.tensor([math.nan, math.inf, -1e30, 7.0])
    for build, names in ((stats_of, SUMS), (moment_of, ("outer",))):
        clean, soiled = build(z[mask]), build(dirty, mask)
        assert clean.count == soiled.count == 6
        for name in names:
            assert torch.equal(getattr(clean, name), getattr(soiled, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_second_moment_equals_loops(dtype):
    z = activations(4, 2, 9, 6, dtype=dtype)
    mask = torch.arange(18).reshape(2, 9) % 3 > 0
    moment = moment_of(z, mask)
    rows = z[mask].double().tolist()
    assert moment.outer.dtype == torch.float64
    precise = dtype == torch.float64
    tolerance = 1e-14 if precise else 1e-6
    close(moment.outer, slow_moment(rows), relative=tolerance, absolute=tolerance)
    close(
        moment.mean,
        [[v / len(rows) for v in row] for row in slow_moment(rows)],
        relative=tolerance,
        absolute=tolerance,
    )


def test_second_moment_diagonal_is_the_energy():
    z = activations(5, 40, 6, dtype=torch.float64)
    close(moment_of(z).outer.diagonal(), stats_of(z).square)


@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([1e-6, 0.1, 1.0, 1e6]),
)
def test_neither_order_nor_batches_matter(seed, cuts, order, scale):
    z = activations(seed, 30, 3, scale=scale)
    whole, whole_moment = stats_of(z), moment_of(z.double())
    places = list(range(30))
    order.shuffle(places)
    stats, moment = NeuronStats.zeros(3), SecondMoment.zeros(3)
    edges = [0, *sorted(cuts), 30]
    for start, stop in zip(edges, edges[1:], strict=False):
        stats.update(z[places[start:stop]])
        moment.update(z[places[start:stop]].double())
    tolerance = {"relative": 1e-13, "absolute": 1e-13 * scale**2 + 1e-13 * scale}
    same(stats, whole, **tolerance)
    close(moment.outer, whole_moment.outer, **tolerance)


@given(seed=st.integers(0, 10_000), sizes=st.tuples(*[st.integers(0, 9)] * 3))
def test_merging_is_associative_commutative_and_equals_one_pass(seed, sizes):
    z = activations(seed, sum(sizes), 4)
    a, b, c = (stats_of(part) for part in z.split(list(sizes)))
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        same(merged, stats_of(z))
    p, q, r = (moment_of(part.double()) for part in z.split(list(sizes)))
    for merged in (p.merge(q).merge(r), p.merge(q.merge(r)), r.merge(q).merge(p)):
        assert merged.count == sum(sizes)
        close(merged.outer, moment_of(z.double()).outer)


def test_merging_with_nothing_is_exact_and_leaves_both_as_they_were():
    a, none = stats_of(activations(6, 8, 3)), NeuronStats.zeros(3)
    merged = a.merge(none)
    before = a.total.clone()
    merged.update(torch.ones(1, 3))
    assert torch.equal(a.total, before) and none.count == 0 and merged.count == a.count + 1


def test_counts_are_exact_where_float32_would_stall():
    stats = NeuronStats.zeros(1)
    stats.count, stats.over = 2**24, torch.tensor([2.0**24], dtype=torch.float64)
    stats.update(torch.ones(1, 1))
    assert stats.count == 2**24 + 1 and stats.over.item() == 2**24 + 1


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(InputError, match="width 3, tau 0.1 .* width 4, tau 0.1"):
        NeuronStats.zeros(3).merge(NeuronStats.zeros(4))
    with pytest.raises(InputError, match="tau 0.1 .* tau 0.2"):
        NeuronStats.zeros(3).merge(NeuronStats.zeros(3, tau=0.2))
    with pytest.raises(InputError, match="width 1 and 3"):
        SecondMoment.zeros(1).merge(SecondMoment.zeros(3))
    for empty in (NeuronStats.zeros(3), SecondMoment.zeros(3)):
        with pytest.raises(InputError, match="width 1 given, the site has 3"):
            empty.update(torch.ones(5, 1))
        with pytest.raises(InputError, match=r"shape \(5,\)"):
            empty.update(torch.ones(5, 3), torch.ones(4, dtype=torch.bool))
        with pytest.raises(InputError, match="int64"):
            empty.update(torch.ones(5, 3), torch.ones(5, dtype=torch.int64))
        assert empty.count == 0


def test_files_give_back_every_bit_and_the_metadata(tmp_path):
    stats = {"language.10": stats_of(activations(7, 9, 5)), "vision.0": NeuronStats.zeros(2, 0.3)}
    moments = {"language.2": moment_of(activations(8, 9, 5))}
    for name, written in (("neurons", stats), ("moments", moments)):
        path = tmp_path / f"{name}.safetensors"
        save_stats(path, written, {"set": "forget"})
        read, about = load_stats(path)
        assert about == {"set": "forget"} and set(read) == set(written)
        for key, value in written.items():
            assert type(read[key]) is type(value) and read[key].count == value.count
            for field, tensor in value.tensors().items():
                assert torch.equal(read[key].tensors()[field], tensor)
    assert load_stats(tmp_path / "neurons.safetensors")[0]["vision.0"].tau == 0.3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "moments.safetensors",
        "neurons.safetensors",
    ]


def test_loaded_statistics_can_be_carried_on(tmp_path):
    z = activations(9, 12, 3)
    save_stats(tmp_path / "half", {"language.0": stats_of(z[:5])}, {})
    resumed = load_stats(tmp_path / "half")[0]["language.0"]
    resumed.update(z[5:])
    same(resumed, stats_of(z))


def _reduce(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    part = activations(10, 11, 4)[[slice(0, 3), slice(3, 11)][rank]]
    stats, moment = stats_of(part), moment_of(part.double())
    stats.all_reduce()
    moment.all_reduce()
    save_stats(folder / f"{rank}.neurons", {"language.0": stats}, {})
    save_stats(folder / f"{rank}.moments", {"language.0": moment}, {})
    torch.distributed.destroy_process_group()


def test_two_processes_add_up_to_one(tmp_path):
    spawn(_reduce, args=(tmp_path,), nprocs=2)
    z = activations(10, 11, 4)
    for rank in range(2):
        same(load_stats(tmp_path / f"{rank}.neurons")[0]["language.0"], stats_of(z))
        moment = load_stats(tmp_path / f"{rank}.moments")[0]["language.0"]
        assert moment.count == 11
        close(moment.outer, moment_of(z.double()).outer)
