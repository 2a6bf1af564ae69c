"""Plans: what a file gives back, how plans compose, and which are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from expunge.errors import InputError
from expunge.plan import Plan, SiteEdit
from expunge.rewire import Rewire

OUT, WIDTH = 3, 6
BASE = {"id": "tiny", "model_type": "llava", "fingerprint": "f" * 32}


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def index(*values):
    return torch.tensor(values, dtype=torch.int64)


def plan_of(edits, fingerprint="f" * 32, **provenance):
    sites = {
        key: {"tower": key.split(".")[0], "path": f"model.{key}", "width": WIDTH} for key in edits
    }
    origin = {"method": "manu", "base": {**BASE, "fingerprint": fingerprint}, "seed": 0}
    return Plan(edits, sites, {**origin, **provenance})


def every_kind():
    return plan_of(
        {
            "vision.2": SiteEdit(prune=index(0, 4)),
            "language.2": SiteEdit(scale=(index(1, 5), torch.tensor([0.5, -0.25]))),
            "language.10": SiteEdit(lowrank=(numbers(1, OUT, 2), numbers(2, 2, WIDTH))),
            "connector.0": SiteEdit(
                prune=index(3),
                steer=(index(0, 2), torch.tensor([1.5, 0.0]), torch.tensor([False, True])),
            ),
        },
        date="2026-01-01",
    )


def same_tensors(one, other):
    """Equal bit for bit, dtype and shape included."""
    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def dense(edit, weight):
    """The edited down projection, written down from the definition: (W + A B) diag(s)."""
    edited = weight.double().clone()
    if edit.lowrank is not None:
        edited += edit.lowrank[0].double() @ edit.lowrank[1].double()
    factors = torch.ones(WIDTH, dtype=torch.float64)
    if edit.scale is not None:
        factors[edit.scale[0]] *= edit.scale[1].double()
    if edit.prune is not None:
        factors[edit.prune] = 0
    return edited * factors


def test_a_file_gives_back_every_edit_and_its_origin(tmp_path):
    plan = every_kind()
    path = plan.save(tmp_path / "plan.safetensors")
    read = Plan.load(path)
    assert same_tensors(read.tensors(), plan.tensors())
    assert read.provenance == plan.provenance and read.sites == plan.sites
    assert {k: e.kind for k, e in read.edits.items()} == {
        "vision.2": "prune",
        "language.2": "scale",
        "language.10": "lowrank",
        "connector.0": "prune+steer",
    }
    assert read.edits["vision.2"].prune.dtype == torch.int64
    assert read.edits["connector.0"].steer[2].tolist() == [False, True]
    assert read.scores == {}


def test_saving_twice_gives_the_same_bytes(tmp_path):
    first = every_kind().save(tmp_path / "a").read_bytes()
    assert Plan.load(tmp_path / "a").save(tmp_path / "b").read_bytes() == first


def test_the_header_is_json_that_says_what_is_edited(tmp_path):
    path = every_kind().save(tmp_path / "plan.safetensors")
    header = json.loads(metadata(path)["expunge"])
    assert header["version"] == 3 and header["method"] == "manu" and header["base"] == BASE
    assert header["sites"]["language.10"] == {
        "tower": "language",
        "path": "model.language.10",
        "width": WIDTH,
        "kind": "lowrank",
        "count": 2,
    }
    assert {k: s["count"] for k, s in header["sites"].items()} == {
        "vision.2": 2,
        "language.2": 2,
        "language.10": 2,
        "connector.0": 3,
    }


def test_touched_neurons_and_size():
    plan = every_kind()
    assert {k: i.tolist() for k, i in plan.neurons().items()} == {
        "vision.2": [0, 4],
        "language.2": [1, 5],
        "connector.0": [0, 2, 3],
    }
    pruned, scaled, lowrank, steered = 3 * 4, 2 * (4 + 4), 4 * 2 * (OUT + WIDTH), 2 * (4 + 4 + 1)
    assert plan.bytes == pruned + scaled + lowrank + steered
    assert plan.method == "manu"


def test_scores_stay_out_of_the_file(tmp_path):
    bare, scored = every_kind(), every_kind()
    scored = Plan(scored.edits, scored.sites, scored.provenance, {"vision.2": torch.ones(WIDTH)})
    assert scored.save(tmp_path / "b").read_bytes() == bare.save(tmp_path / "a").read_bytes()


def test_sites_may_share_one_tensor(tmp_path):
    """Factors made once for many sites, as a method naturally would."""
    factors, chosen = torch.zeros(2), torch.tensor([1, 2], dtype=torch.int32)
    edits = {f"language.{i}": SiteEdit(prune=chosen, scale=(chosen, factors)) for i in range(3)}
    read = Plan.load(plan_of(edits).save(tmp_path / "plan"))
    assert all(e.scale[1].tolist() == [0.0, 0.0] for e in read.edits.values())


def test_an_empty_plan_is_a_plan(tmp_path):
    read = Plan.load(plan_of({}).save(tmp_path / "plan"))
    assert read.edits == {} and read.neurons() == {} and read.bytes == 0


def some_edit(draw):
    """An edit of one or more kinds at random neurons, with factors that round when multiplied."""
    chosen = st.lists(st.integers(0, WIDTH - 1), min_size=1, unique=True).map(sorted)
    seed = draw(st.integers(0, 1000))
    kinds = draw(st.sets(st.sampled_from(["prune", "scale", "lowrank", "steer"]), min_size=1))
    parts = {}
    if "prune" in kinds:
        parts["prune"] = index(*draw(chosen))
    if "scale" in kinds:
        scaled = draw(chosen)
        parts["scale"] = (index(*scaled), numbers(seed, len(scaled)))
    if "lowrank" in kinds:
        rank = draw(st.integers(1, 2))
        parts["lowrank"] = (numbers(seed + 1, OUT, rank), numbers(seed + 2, rank, WIDTH))
    if "steer" in kinds:
        steered = draw(chosen)
        off = numbers(seed + 4, len(steered)) > 0
        parts["steer"] = (index(*steered), numbers(seed + 3, len(steered)), off)
    return SiteEdit(**parts)


@st.composite
def plans(draw):
    keys = draw(st.sets(st.sampled_from(["language.0", "language.2", "language.10"]), min_size=1))
    return plan_of({key: some_edit(draw) for key in sorted(keys)}, seed=draw(st.integers(0, 3)))


@given(one=plans(), other=plans())
def test_composing_commutes_bit_for_bit(one, other):
    forth, back = one + other, other + one
    assert same_tensors(forth.tensors(), back.tensors())
    assert list(forth.edits) == list(back.edits) and forth.sites == back.sites
    assert json.dumps(forth.header(), sort_keys=True) == json.dumps(back.header(), sort_keys=True)


@given(one=plans(), other=plans())
def test_the_composed_edit_is_both_edits(one, other):
    weight = numbers(99, OUT, WIDTH)
    both = one + other
    assert set(both.edits) == set(one.edits) | set(other.edits)
    for key, edit in both.edits.items():
        parts = [p.edits[key] for p in (one, other) if key in p.edits]
        change = sum(
            (p.lowrank[0].double() @ p.lowrank[1].double() for p in parts if p.lowrank is not None),
            torch.zeros(OUT, WIDTH, dtype=torch.float64),
        )
        wanted = weight.double() + change
        for part in parts:
            alone = SiteEdit(part.prune, part.scale)
            wanted = dense(alone, wanted)
        torch.testing.assert_close(dense(edit, weight), wanted, rtol=1e-6, atol=1e-6)
        for neuron in range(WIDTH):
            steers = [p.steer for p in parts if p.steer is not None and neuron in p.steer[0]]
            add = sum(float(s[1][s[0] == neuron]) for s in steers)
            off = any(bool(s[2][s[0] == neuron]) for s in steers)
            found = None if edit.steer is None else edit.steer[0] == neuron
            assert bool(steers) == (found is not None and bool(found.any()))
            if steers:
                assert float(edit.steer[1][found]) == pytest.approx(add, abs=1e-6)
                assert bool(edit.steer[2][found]) == off


@st.composite
def site_edits(draw):
    return some_edit(draw)


@given(one=site_edits(), other=site_edits())
def test_joining_edits_of_one_site_commutes_bit_for_bit(one, other):
    assert same_tensors(one.join(other).tensors(), other.join(one).tensors())


def test_joined_steering_adds_up_and_stays_off_where_either_switches_off():
    one = SiteEdit(
        steer=(index(0, 1, 2), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, False]))
    )
    other = SiteEdit(
        steer=(index(0, 1, 4), torch.tensor([0.5, 0.5, 0.5]), torch.tensor([False, True, True]))
    )
    for joined in (one.join(other), other.join(one)):
        assert joined.steer[0].tolist() == [0, 1, 2, 4]
        assert joined.steer[1].tolist() == [1.5, 2.5, 3.0, 0.5]
        assert joined.steer[2].tolist() == [True, True, False, True]


def test_joined_scales_multiply_and_ranks_add_up():
    one = SiteEdit(
        scale=(index(1, 3), torch.tensor([0.5, 3.0])),
        lowrank=(numbers(1, OUT, 1), numbers(2, 1, WIDTH)),
    )
    other = SiteEdit(
        scale=(index(2, 3), torch.tensor([2.0, -0.25])),
        lowrank=(numbers(3, OUT, 2), numbers(4, 2, WIDTH)),
    )
    joined = one.join(other)
    assert joined.scale[0].tolist() == [1, 2, 3]
    assert joined.scale[1].tolist() == [0.5, 2.0, -0.75]
    product = one.lowrank[0] @ one.lowrank[1] + other.lowrank[0] @ other.lowrank[1]
    torch.testing.assert_close(joined.lowrank[0] @ joined.lowrank[1], product)
    assert joined.count == 3 and joined.kind == "scale+lowrank"


@given(one=plans(), other=plans(), third=plans())
def test_three_plans_compose_in_any_grouping(one, other, third):
    left, right = (one + other) + third, one + (other + third)
    weight = numbers(98, OUT, WIDTH)
    assert list(left.edits) == list(right.edits)
    for key in left.edits:
        torch.testing.assert_close(
            dense(left.edits[key], weight), dense(right.edits[key], weight), rtol=1e-5, atol=1e-5
        )
    assert left.provenance == right.provenance and len(left.provenance["parts"]) == 3


def test_a_composed_plan_names_its_parts_and_survives_a_file(tmp_path):
    one = plan_of({"language.10": SiteEdit(prune=index(1))}, method="manu")
    other = plan_of({"language.2": SiteEdit(prune=index(2))}, method="random")
    both = one + other
    assert list(both.edits) == ["language.2", "language.10"]
    assert both.method == "composed" and both.provenance["base"] == BASE
    assert sorted(p["method"] for p in both.provenance["parts"]) == ["manu", "random"]
    read = Plan.load(both.save(tmp_path / "plan"))
    assert same_tensors(read.tensors(), both.tensors())
    assert read.provenance == both.provenance


def test_composing_leaves_the_parts_as_they_were():
    one, other = every_kind(), every_kind()
    before = one.tensors()
    both = one + other
    assert same_tensors(one.tensors(), before)
    assert both.edits["language.2"].scale[1].tolist() == [0.25, 0.0625]
    assert both.edits["connector.0"].steer[1].tolist() == [3.0, 0.0]


def test_plans_for_other_weights_do_not_compose():
    one, other = plan_of({}), plan_of({}, fingerprint="e" * 32)
    with pytest.raises(InputError, match="ffff.* and eeee.*: only plans for one base"):
        one + other


def test_a_failing_write_leaves_the_old_file_alone(tmp_path):
    path = every_kind().save(tmp_path / "plan.safetensors")
    before = path.read_bytes()
    broken = plan_of({"language.0": SiteEdit(prune=index(1))}, date=object())
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == before
    with pytest.raises(TypeError):
        broken.save(tmp_path / "new.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def test_nothing_temporary_is_left_and_old_plans_are_replaced(tmp_path):
    path = tmp_path / "plan.safetensors"
    every_kind().save(path)
    plan_of({"language.0": SiteEdit(prune=index(1))}).save(path)
    assert list(Plan.load(path).edits) == ["language.0"]
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="gone is not a folder"):
        every_kind().save(tmp_path / "gone" / "plan.safetensors")


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(b"\xff" * 200)


@pytest.mark.parametrize("damage", [shortened, emptied, garbled])
def test_a_damaged_file_is_an_input_error(tmp_path, damage):
    path = every_kind().save(tmp_path / "plan.safetensors")
    damage(path)
    with pytest.raises(InputError, match="not a safetensors file"):
        Plan.load(path)


def test_what_is_no_plan_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no plan file at"):
        Plan.load(tmp_path / "absent")
    with pytest.raises(InputError, match="no plan file at"):
        Plan.load(tmp_path)
    save_file({"weight": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(InputError, match="no 'expunge' entry"):
        Plan.load(tmp_path / "other")


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "sites": 7}',
        '{"version": 1, "sites": {"language.0": {}}}',
    ],
)
def test_a_header_that_does_not_fit_is_an_input_error(tmp_path, header):
    save_file({"language.0/steered": index(1)}, tmp_path / "plan", {"expunge": header})
    with pytest.raises(InputError, match="damaged plan"):
        Plan.load(tmp_path / "plan")


def test_a_plan_of_a_newer_format_is_refused(tmp_path):
    save_file({}, tmp_path / "plan", {"expunge": '{"version": 4, "sites": {}}'})
    with pytest.raises(InputError, match="plan version 4, this expunge reads 3"):
        Plan.load(tmp_path / "plan")


def test_constants_of_new_neurons_are_kept_and_stay_with_them(tmp_path):
    """In a file, in what is put beside the gate, and when joined to a plan without any."""
    plain, other = rewire(1, [1]), rewire(2, [2, 3])
    other = replace(other, constant=torch.tensor([0.0, 4.0]))
    assert "constant" not in SiteEdit(rewire=plain).tensors() and other.biased
    plans = [plan_of({"a.0": SiteEdit(rewire=r).gridded()}) for r in (plain, other)]
    read = [Plan.load(p.save(tmp_path / "plan")).edits["a.0"].rewire for p in plans]
    for new, was in zip(read, (plain, other), strict=True):
        held = was.constant if len(was.constant) else torch.zeros(1)
        rows, beside = new.inner[1]
        assert torch.allclose(beside, was.factor * was.bias + held)
        assert torch.equal(rows, new.factor[:, None] * new.gate)
    for both in (plans[0] + plans[1], plans[1] + plans[0]):
        joined = both.edits["a.0"].rewire
        found = dict(zip(joined.factor.tolist(), joined.constant.tolist(), strict=True))
        constants = [0.0, *other.constant.tolist()]
        expected = zip([*plain.factor.tolist(), *other.factor.tolist()], constants, strict=True)
        assert found == dict(expected)


def rewire(seed, index, pool=None, width=5):
    return Rewire(
        torch.tensor(index),
        numbers(seed, len(index), width),
        numbers(seed + 1, len(index)),
        numbers(seed + 2, len(index)),
        numbers(seed + 3, OUT, len(index)),
        torch.tensor(pool or index),
    )


def test_on_a_grid_the_file_is_small_and_holds_the_same_bit_for_bit(tmp_path):
    """Matrices are off by half of each row's or column's step; all else is as it was."""
    factors = 4 * numbers(1, OUT, 40), numbers(2, 40, 500)
    edit = SiteEdit(lowrank=factors, rewire=rewire(3, [2, 5], width=500))
    given, rounded = edit.tensors(), edit.gridded().tensors()
    along = {"A": (31, 0), "B": (7, 1), "gate": (127, 1), "down": (31, 0)}
    for name, (steps, dim) in along.items():
        step = given[name].abs().amax(dim, keepdim=True) / steps
        assert ((rounded[name] - given[name]).abs() <= step * (0.5 + steps / 256)).all()
    assert same_tensors(*({n: t for n, t in e.items() if n not in along} for e in (given, rounded)))
    small, large = (plan_of({"language.0": e}) for e in (edit.gridded(), edit))
    read = Plan.load(small.save(tmp_path / "small"))
    assert same_tensors(read.tensors(), small.tensors())
    assert same_tensors(Plan.load(large.save(tmp_path / "large")).tensors(), large.tensors())
    assert same_tensors(read.edits["language.0"].gridded().tensors(), rounded)
    assert small.bytes == sum(t.numel() * t.element_size() for t in stored(tmp_path / "small"))
    assert (tmp_path / "small").stat().st_size < 0.2 * (tmp_path / "large").stat().st_size


def stored(path):
    with safe_open(path, "pt") as file:
        return [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118


def test_composed_plans_stay_on_their_grids(tmp_path):
    """So that two small files make a small one."""
    edits = [
        SiteEdit(lowrank=(numbers(s, OUT, 2), numbers(s + 1, 2, WIDTH)), rewire=rewire(s, [s]))
        for s in (1, 2)
    ]
    both = plan_of({"a.0": edits[0].gridded()}) + plan_of({"a.0": edits[1].gridded()})
    assert {f"a.0/{name}.codes" for name in ("A", "B", "gate", "down")} <= both.packed().keys()
    assert same_tensors(Plan.load(both.save(tmp_path / "both")).tensors(), both.tensors())


def test_new_neurons_of_an_earlier_version_are_refused(tmp_path):
    """Their rows were held whole; other plans of that version are read."""
    header = json.dumps({"version": 1, "sites": {"a.0": {"path": "a"}}})
    old = {"gate": torch.ones(1, 6), "up": torch.ones(1, 6), "down": torch.ones(OUT, 1)}
    old |= {"rewired": index(1).int(), "pool": index(1).int()}
    save_file({f"a.0/{n}": t for n, t in old.items()}, tmp_path / "old", {"expunge": header})
    with pytest.raises(InputError, match=r"earlier version .* make it again"):
        Plan.load(tmp_path / "old")
    save_file({"a.0/indices": index(1, 4).int()}, tmp_path / "pruned", {"expunge": header})
    assert Plan.load(tmp_path / "pruned").edits["a.0"].prune.tolist() == [1, 4]


def test_rewired_neurons_join_inside_their_pools_in_any_order():
    def edit(index, pool, seed):
        return SiteEdit(rewire=rewire(10 * seed, index, pool))

    parts = [edit([1, 4], [1, 2, 4, 7], 0), edit([1, 2], [1, 2, 9], 1), edit([7], [3, 7], 2)]
    ways = [
        parts[0].join(parts[1]).join(parts[2]),
        parts[2].join(parts[0]).join(parts[1]),
        parts[1].join(parts[2].join(parts[0])),
    ]
    for way in ways:
        assert way.rewire.index.tolist() == [1, 2, 3, 4, 7] and way.count == 5
        assert not len(way.rewire.constant)
        for name, tensor in way.tensors().items():
            assert torch.equal(tensor, ways[0].tensors()[name])
    rows = {tuple(r.tolist()) for p in parts for r in p.rewire.gate}
    assert {tuple(r.tolist()) for r in ways[0].rewire.gate} == rows
    with pytest.raises(InputError, match="only 2 can be given up"):
        edit([0, 1], [0, 1], 3).join(edit([0], [0], 4))
