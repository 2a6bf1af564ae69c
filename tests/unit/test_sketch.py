"""Sketched second moments against exact ones: the stated error holds; a plan made of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.spawn import spawn

from expunge import make_plan
from expunge.edit import applied
from expunge.errors import InputError
from expunge.passes import groups_within
from expunge.sites import Site
from expunge.sketch import Sketch
from expunge.stats import SecondMoment

WIDTH = 40


def drawn(seed, rows=300, rank=WIDTH, noise=0.05):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(*shape, generator=generator) for shape in ((rows, rank), (rank, WIDTH))
    )
    decay = 0.7 ** torch.arange(rank)
    return (left * decay) @ right + noise * torch.randn(rows, WIDTH, generator=generator)


def both(parts, size):
    sketch, exact = Sketch.zeros(WIDTH, size), SecondMoment.zeros(WIDTH)
    for z, times in parts:
        sketch.update(z, times=times)
        exact.update(z.double(), times=times)
    return sketch, exact


def off(sketch, exact):
    return float(torch.linalg.matrix_norm(sketch.outer - exact.outer, 2))


@given(st.integers(0, 1000), st.integers(1, 18), st.integers(1, 90), st.integers(1, 5))
def test_the_error_in_any_direction_is_at_most_the_stated_one(seed, size, rows, times):
    z = drawn(seed, rows)
    sketch, exact = both([(z[: rows // 2], times), (z[rows // 2 :], 1)], size)
    assert sketch.count == exact.count
    rounding = 1e-9 * float(exact.outer.diagonal().sum())
    assert off(sketch, exact) <= sketch.error + rounding
    # Ghashami et al., theorem 1.1: at most what is outside the best k dimensions over size + 1 - k
    energy = torch.linalg.eigvalsh(exact.outer).flip(0).clamp_min(0)
    for k in range(size):
        assert sketch.lost <= float(energy[k:].sum()) / (size + 1 - k) + rounding


def test_what_fits_is_exact_whatever_the_number_of_rows():
    z = drawn(1, rows=900, rank=6, noise=0)
    sketch, exact = both([(z, 1)], 6)
    assert sketch.relative_error < 1e-9
    torch.testing.assert_close(sketch.outer, exact.outer, rtol=1e-6, atol=1e-6)


def test_the_relative_error_is_against_the_leading_direction():
    sketch, exact = both([(drawn(2), 1)], 8)
    most = float(torch.linalg.eigvalsh(exact.outer)[-1])
    assert 0 < off(sketch, exact) / most <= 1.1 * sketch.relative_error < 0.2
    assert Sketch.zeros(3, 2).relative_error == 0


def test_merged_sketches_state_an_error_that_holds():
    z = drawn(3)
    (one, _), (two, _), (_, exact) = (both([(part, 1)], 8) for part in (z[:120], z[120:], z))
    merged = one.merge(two)
    assert merged.count == 300 and off(merged, exact) <= merged.error
    assert merged.error >= one.error + two.error
    with pytest.raises(InputError, match="cannot be merged"):
        one.merge(Sketch.zeros(WIDTH, 3))


def test_masked_positions_never_count():
    z = drawn(4, 20)
    mask = torch.arange(20) % 3 > 0
    dirty = z.clone()
    dirty[~mask] = float("nan")
    found = []
    for given_, how in ((z[mask], {}), (dirty, {"mask": mask})):
        sketch = Sketch.zeros(WIDTH, 30)
        sketch.update(given_, **how)
        found.append(sketch.outer)
    assert torch.equal(*found)
    places = Sketch.zeros(WIDTH, 30)
    places.update(dirty, places=torch.nonzero(mask)[:, 0])
    assert torch.equal(places.outer, found[0])


def test_sketches_need_fewer_passes():
    sites = [Site(f"language.{i}", "language", "mlp", f"l.{i}", 1000, 1, False) for i in range(8)]
    reach = {("forget", "multi"): sites}
    limit = 2 * 8 * 1000**2
    assert len(groups_within(limit, sites, reach, 0)) == 4
    assert len(groups_within(limit, sites, reach, 0, sketch=100)) == 1
    assert len(groups_within(limit, sites, reach, 0, sketch=1000)) == 4  # never more than whole


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 60)[None]).logits


def test_a_plan_from_sketches_does_what_the_exact_one_does(llava, processor, few):
    plain = logits(llava)
    moved, told = {}, {}
    for size in (None, 8, 300):
        plan = make_plan(
            llava, processor, few["forget"], few["retain"], method="filter", sketch=size
        )
        told[size] = plan.provenance.get("sketch")
        with applied(llava, plan):
            moved[size] = logits(llava) - plain
    assert told[None] is None and told[300]["size"] == 300
    assert 0 <= told[300]["error"] < told[8]["error"] < 1
    near, rough = ((moved[s] - moved[None]).norm() / moved[None].norm() for s in (300, 8))
    assert near < 0.1 and near < rough


def _reduce(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mine, _ = both([(drawn(5)[rank::2], 1)], 8)
    mine.all_reduce()
    torch.save((mine.count, mine.outer, mine.error), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_come_to_the_same_within_the_error(tmp_path):
    spawn(_reduce, args=(tmp_path,), nprocs=2)
    (count, outer, error), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    _, exact = both([(drawn(5), 1)], 8)
    assert count == other[0] == 300 and torch.equal(outer, other[1]) and error == other[2]
    assert 0 < float(torch.linalg.matrix_norm(outer - exact.outer, 2)) <= error
