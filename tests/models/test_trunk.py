"""Running on from the layer where edits begin to differ says what running everything says."""

from dataclasses import replace

import pytest
import torch
from test_prefix import EXACT, PLAIN, ROWS, double, sites_of

from expunge.data import CONDITIONS
from expunge.edit import edited, fingerprint
from expunge.fiction.build import build_model, build_processor
from expunge.fiction.world import World
from expunge.models import Prompter
from expunge.plan import SiteEdit
from expunge.probe_set import ProbeSet
from expunge.sites import down_weight, find_sites, layer_of
from expunge.trunk import Trunk, alike, same


@pytest.fixture(scope="module")
def world():
    processor = build_processor()
    model = build_model(processor, seed=1).eval()
    rows = World(private=24, public=3).suite()["forget"][:24]
    return model, Prompter(processor), rows, {s.key: s for s in find_sites(model)}


def changed(model, sites, keys, seed):
    """Low-rank edits of some sites, large enough to change what is said."""
    generator = torch.Generator().manual_seed(seed)
    edits = {}
    for key in keys:
        out, width = down_weight(model, sites[key]).shape
        a, b = (torch.randn(*s, generator=generator) for s in ((out, 2), (2, width)))
        edits[key] = SiteEdit(lowrank=(a / 10, b))
    return edits


def behind(world, depth, seed):
    """The same of all language sites of the small world from a depth on."""
    model, _, _, sites = world
    return changed(model, sites, [f"language.{i}" for i in range(depth, 4)], seed)


@pytest.fixture
def ran(world):
    """How often the MLP of each layer has run."""
    model, _, _, sites = world
    count, hooks = [0] * 4, []
    for i in range(4):
        mlp = model.get_submodule(layer_of(sites[f"language.{i}"])).mlp

        def add(*_, place=i):
            count[place] += 1

        hooks.append(mlp.register_forward_hook(add))
    yield count
    for hook in hooks:
        hook.remove()


def agree(world, trunk, probes, edits, ran):
    """Assert that the trunk finds what a run of the whole model does; `ran` counts the trunk's."""
    model, _, _, sites = world
    with edited(model, sites, edits):
        found = trunk.run(probes, edits)
        counted = list(ran)
        whole = probes.run(model)
        ran[:] = counted
    assert torch.equal(found.recalled, whole.recalled)
    torch.testing.assert_close(found.nll, whole.nll, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_candidates_are_judged_as_if_each_were_run_whole(world, condition, ran):
    """Shared and plain batches, edits that come back, one that changes everything, a new set."""
    model, prompter, rows, sites = world
    before = fingerprint(model)
    twice = [replace(e, answer=a) for e in rows[:8] for a in (e.answer, "a moon and a sun")]
    sets = [ProbeSet(model, prompter, some, condition, batch_size=8) for some in (twice, rows[::6])]
    kinds = {type(b).__name__ for each in sets for b in each.batches}
    assert kinds == {"Batch", "Shared"}
    trunk = Trunk(model, sites)
    one = changed(model, sites, ["language.1"], 5)
    for edits in (
        {},
        behind(world, 2, 1),
        behind(world, 3, 2),
        behind(world, 2, 3),
        one,
        one | behind(world, 3, 4),
        one | behind(world, 3, 6),
        one | behind(world, 2, 7),
        behind(world, 0, 8),
        behind(world, 3, 2),
        changed(model, sites, ["vision.0"], 9) | behind(world, 3, 2),
        behind(world, 3, 2),
    ):
        for each in sets:
            agree(world, trunk, each, edits, ran)
    assert trunk.exact and all(trunk.exact.values())
    assert ran[0] < ran[1] < ran[2] < ran[3]
    layers = [model.get_submodule(path) for s in sites.values() if (path := layer_of(s))]
    assert not any("Trunk" in layer.forward.__qualname__ for layer in layers)
    assert fingerprint(model) == before


def test_nothing_before_the_last_layer_runs_again_where_only_that_is_changed(world, ran):
    model, prompter, rows, sites = world
    probes = ProbeSet(model, prompter, rows, "multi", batch_size=8)
    trunk = Trunk(model, sites)
    for seed in range(3):  # heard, then checked against the whole
        agree(world, trunk, probes, behind(world, 3, seed), ran)
    ran[:] = [0] * 4
    agree(world, trunk, probes, behind(world, 3, 4), ran)
    assert ran[:3] == [0, 0, 0] and ran[3] > 0


@pytest.mark.parametrize("remembers", [False, True])
def test_where_layers_look_past_each_other_the_model_is_run_whole(world, ran, remembers):
    """The last layer adds to what it is given what has entered the first, now or at last."""
    model, prompter, rows, sites = world
    probes = ProbeSet(model, prompter, rows, "text", batch_size=8)
    first, last = (model.get_submodule(layer_of(sites[f"language.{i}"])) for i in (0, 3))
    seen = []
    hooks = [
        first.mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0])),
        last.register_forward_pre_hook(
            lambda _, x: (x[0] + (seen[-1] if remembers else seen.pop()), *x[1:])
        ),
    ]
    trunk = Trunk(model, sites)
    for seed in range(4):
        agree(world, trunk, probes, behind(world, 3, seed), ran)
    assert list(trunk.exact.values()) == [False]
    for seed in range(3):
        agree(world, trunk, probes, behind(world, 2, seed), ran)
    assert list(trunk.exact.values()) == [False, False]
    for hook in hooks:
        hook.remove()


def test_what_does_not_fit_is_not_held(world, ran):
    model, prompter, rows, sites = world
    probes = ProbeSet(model, prompter, rows, "text", batch_size=8)
    trunk = Trunk(model, sites)
    trunk.free = 1000
    for seed in range(3):
        agree(world, trunk, probes, behind(world, 3, seed), ran)
    assert not trunk.held and len(set(ran)) == 1


def test_edits_are_the_same_by_what_they_change(world):
    some, others = (behind(world, 2, 1) for _ in range(2))
    assert same(some, others) and not same(some, behind(world, 2, 2))
    assert not same(some, behind(world, 3, 1)) and same({}, {})
    assert alike(None, SiteEdit()) and not alike(None, some["language.2"])
    keys = SiteEdit(prune=torch.tensor([1, 2])), SiteEdit(prune=torch.tensor([1, 3]))
    assert not alike(*keys)


@pytest.mark.parametrize("name", [*EXACT, *PLAIN])
def test_families(name):
    """In every family a run of candidates comes to what whole runs do, edited from any layer on."""
    _, model, prompter = double(name)
    sites = {s.key: s for s in sites_of(model)}
    language = [key for key, site in sites.items() if site.tower == "language"]
    trunk = Trunk(model, sites)
    for condition in CONDITIONS if name != "blip2-opt" else ["multi"]:  # it needs a picture
        probes = ProbeSet(model, prompter, ROWS, condition, batch_size=4)
        for seed, depth in enumerate((1, 1, 1, len(language) - 1, len(language) - 1, 1, 0)):
            edits = changed(model, sites, language[depth:], seed)
            with edited(model, sites, edits):
                found, whole = trunk.run(probes, edits), probes.run(model)
            torch.testing.assert_close(found.nll, whole.nll, rtol=1e-9, atol=1e-9)
    assert trunk.exact
