"""Every family, from statistics to a reloaded checkpoint, through the public interface."""

from __future__ import annotations

import copy
import gc
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from families import AUTO, FAMILIES, unmake

from expunge.collect import Counting, collect_inputs, record
from expunge.config import RunConfig
from expunge.edit import fingerprint, save_checkpoint
from expunge.methods import METHODS, Evidence
from expunge.plan import Plan
from expunge.planning import settled
from expunge.sites import down_module, down_weight, find_sites

TOWERS = ("vision", "audio", "connector", "language")
CONDITIONS = ("multi", "text")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(request):
    """A family, its model and the sites that `family.inputs` reaches."""
    family = FAMILIES[request.param]
    model = family.build()
    sites = [s for s in find_sites(model) if not s.dead and s.key not in family.silent]
    yield family, model, sites
    gc.collect()


def conditions_of(family, model):
    found = {c: batch for c in CONDITIONS if (batch := family.inputs(model, c)) is not None}
    if family.model_type == "paligemma":  # without types it is causal only where there is padding
        found["text"]["token_type_ids"] = torch.zeros_like(found["text"]["input_ids"])
    return found


def altered(batch):
    """The same batch with other words."""
    ids = batch["input_ids"]
    words = (ids >= 5) & (ids < 80)
    return batch | {"input_ids": torch.where(words, (ids - 5 + 17) % 75 + 5, ids)}


def evidence_of(family, model, sites, moments=False):
    """Statistics of two data sets under every condition that the family knows."""
    neurons, second = {}, {}
    for condition, batch in conditions_of(family, model).items():
        reached = [s for s in sites if condition == "multi" or s.tower == "language"]
        for name, each in (("forget", batch), ("retain", altered(batch))):
            found = collect_inputs(
                model, [each], sites=reached, condition=condition, moments=moments
            )
            neurons[name, condition], second[name, condition] = found.neurons, found.moments
    return Evidence(sites, neurons, second, lambda key: down_weight(model, by_key(sites)[key]))


def by_key(sites):
    return {site.key: site for site in sites}


@torch.no_grad()
def logits(model, batch):
    return model(**batch).logits


def whole_batch(family, model):
    return family.inputs(model, "multi") or family.inputs(model, "text")


def slow_sums(model, site, batch, mask):
    """Sum of |z| over the counted positions, with a hook and loops of its own."""
    total, count = torch.zeros(site.width, dtype=torch.float64), 0

    def hook(_, inputs):
        nonlocal count
        z = inputs[0].detach().double()
        rows = z.reshape(-1, z.shape[-1])
        counts = mask.flatten().tolist() if site.tower == "language" else [True] * len(rows)
        for row, counted in zip(rows, counts, strict=True):
            if counted:
                total.add_(row.abs())
                count += 1

    handle = down_module(model, site).register_forward_pre_hook(hook)
    logits(model, batch)
    handle.remove()
    return total, count


def test_sums_are_those_of_a_slow_loop(case):
    family, model, sites = case
    for condition, batch in conditions_of(family, model).items():
        found = collect_inputs(model, [batch], sites=sites, condition=condition).neurons
        for site in sites:
            if site.kind == "expert":
                continue
            decodes = family.decoder and ".decoder." in f".{site.path}"
            mask = batch["attention_mask"].bool()
            mask = torch.ones_like(batch["decoder_input_ids"]).bool() if decodes else mask
            total, count = slow_sums(model, site, batch, mask)
            assert found[site.key].count == count
            torch.testing.assert_close(found[site.key].absolute, total, rtol=1e-6, atol=1e-6)
            sleeps = site.key in family.asleep_without_media or site.tower != "language"
            assert count > 0 or (condition == "text" and sleeps)


def test_listening_leaves_the_logits(case):
    family, model, sites = case
    batch = whole_batch(family, model)
    before = logits(model, batch)
    with record(model, sites, lambda *_: None):
        during = logits(model, batch)
    torch.testing.assert_close(during, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model, batch), before)


def lengthened(batch, more=2):
    """The batch with further padding on the right of everything that follows the text."""
    length = batch["input_ids"].shape[1]

    def longer(value):
        if value.ndim < 2 or value.shape[1] != length:
            return value
        return torch.cat([value, torch.zeros_like(value[:, :more])], 1)

    texts = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    others = ("cross_attention_mask", "image_embeds_position_mask")
    return {k: longer(v) if k in texts + others else v for k, v in batch.items()}


@pytest.mark.parametrize("unit", ["token", "example"])
def test_padding_does_not_count(case, unit):
    family, model, sites = case
    language = [s for s in sites if s.tower == "language"]
    counting = Counting(unit=unit)
    for condition, batch in conditions_of(family, model).items():
        short, long = (
            collect_inputs(model, [b], sites=language, condition=condition, counting=counting)
            for b in (batch, lengthened(batch))
        )
        for site in language:
            assert_same_sums(short.neurons[site.key], long.neurons[site.key])


def test_batch_size_does_not_count(case):
    family, model, sites = case
    batch = conditions_of(family, model).get("text")
    if batch is None:
        pytest.skip("this family has no text condition")
    language = [s for s in sites if s.tower == "language"]
    alone = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(2)]
    texts = ("input_ids", "attention_mask", "token_type_ids")
    alone[1] |= {k: alone[1][k][:, :-3] for k in texts if k in alone[1]}
    together = collect_inputs(model, [batch], sites=language, condition="text")
    apart = collect_inputs(model, alone, sites=language, condition="text")
    for site in language:
        assert_same_sums(together.neurons[site.key], apart.neurons[site.key])


def assert_same_sums(one, two):
    assert one.count == two.count
    for name in ("total", "absolute", "square"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-4)


def ablated(model, plan, batch):
    """Logits when the plan's neurons are silenced on their way into the down projections.

    Those of experts are silenced where they are made, in a copy.
    """
    model = copy.deepcopy(model)
    sites = by_key(find_sites(model))
    for key, edit in plan.edits.items():
        if sites[key].kind == "expert":
            unmake(model.get_submodule(sites[key].path), sites[key], edit.prune)
            continue

        def silence(_, inputs, index=edit.prune):
            z = inputs[0].clone()
            z[..., index] = 0
            return (z, *inputs[1:])

        down_module(model, sites[key]).register_forward_pre_hook(silence)
    return logits(model, batch)


def origin_of(model, method):
    return {"method": method, "base": {"fingerprint": fingerprint(model)}}


def about(sites, edits):
    return {
        s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in sites if s.key in edits
    }


def manu(family, model, sites):
    evidence = evidence_of(family, model, sites)
    config = settled(RunConfig(method="manu", budget=0.1))
    outcome = METHODS["manu"].decide(evidence, config)
    return Plan(outcome.edits, about(sites, outcome.edits), origin_of(model, "manu"))


def test_plan_apply_undo_save_reload(case, tmp_path):
    family, model, sites = case
    batch = whole_batch(family, model)
    plan = manu(family, model, sites)
    width = sum(site.width for site in sites)
    assert sum(len(index) for index in plan.neurons().values()) == int(0.1 * width)
    plan.save(tmp_path / "plan.safetensors")
    plan = Plan.load(tmp_path / "plan.safetensors")
    before = logits(model, batch)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected = ablated(model, plan, batch)
    undo = plan.apply(model)
    after = logits(model, batch)
    assert (after - before).abs().max() > 1e-6
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    save_checkpoint(model, None, tmp_path / "model")
    undo()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    classes = [getattr(transformers, f"AutoModelFor{name}") for name in AUTO]
    auto = next(each for each in classes if type(model.config) in each._model_mapping)
    again = auto.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again, batch), after, rtol=1e-5, atol=1e-5)


def filtered(family, model, sites):
    """The forget/retain filter on language and connector."""
    reached = [s for s in sites if s.tower in METHODS["filter"].towers]
    evidence = evidence_of(family, model, reached, moments=True)
    outcome = METHODS["filter"].decide(evidence, RunConfig(method="filter", strength=1.0))
    return Plan(outcome.edits, about(reached, outcome.edits), origin_of(model, "filter"))


def test_filter_is_the_low_rank_edit_that_it_says(case):
    family, model, sites = case
    batch = whole_batch(family, model)
    plan = filtered(family, model, sites)
    assert plan.edits
    known = by_key(sites)
    before = {key: down_weight(model, known[key]).clone() for key in plan.edits}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    said = logits(model, batch)
    undo = plan.apply(model)
    for key, edit in plan.edits.items():
        a, b = (factor.double() for factor in edit.lowrank)
        expected = before[key].double() + a @ b
        found = down_weight(model, known[key]).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (logits(model, batch) - said).abs().max() > 1e-6
    undo()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def rewired(model, site, inner, seed=0):
    """Two random new neurons at a site, and the module that hears their input."""
    from expunge.plan import SiteEdit
    from expunge.rewire import Rewire
    from expunge.sites import inner_bias, inner_weight, takes_bias

    generator = torch.Generator().manual_seed(seed)
    width = inner_weight(model, inner.gate[0], site).shape[1]
    gate = torch.randn(2, width, generator=generator)
    bias, factor, constant = torch.randn(3, 2, generator=generator)
    if not takes_bias(model, inner):
        bias = torch.zeros(2)
    constant = constant if inner.up and takes_bias(model, inner) else constant[:0]
    down = torch.randn(down_weight(model, site).shape[0], 2, generator=generator)
    index = torch.tensor([0, site.width - 1])
    assert inner_bias(model, inner.gate[0]) is None or takes_bias(model, inner)
    factor = factor if inner.up else factor[:0]
    return SiteEdit(rewire=Rewire(index, gate, bias, factor, down, index, constant))


def test_new_neurons_are_what_the_plan_says(case, tmp_path):
    """In every language MLP whose layout is known: what enters its down projection, and undo."""
    from expunge.sites import explains, inner_of

    family, model, sites = case
    batch = whole_batch(family, model)
    known = {
        s.key: i for s in sites if s.tower == "language" and (i := inner_of(model, s)) is not None
    }
    seen = {}

    def hear(key, name):
        return lambda module, given: seen.__setitem__((key, name), given[0].detach().clone())

    def run():
        hooks = []
        for key, inner in known.items():
            site = by_key(sites)[key]
            first = model.get_submodule(inner.gate[0])
            hooks.append(first.register_forward_pre_hook(hear(key, "x")))
            hooks.append(down_module(model, site).register_forward_pre_hook(hear(key, "z")))
        said = logits(model, batch)
        for hook in hooks:
            hook.remove()
        return said

    run()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    heard = {k: [seen[k, name].flatten(0, -2) for name in ("x", "z")] for k in known}
    told = {k for k, xz in heard.items() if explains(model, by_key(sites)[k], known[k], *xz)}
    # Kosmos-2 has a norm between the maps
    assert told == (set() if family.model_type == "kosmos-2" else known.keys())
    known = {key: known[key] for key in known if key in told}
    edits = {key: rewired(model, by_key(sites)[key], inner) for key, inner in known.items()}
    if not edits:
        pytest.skip("no language MLP here takes new neurons")
    plan = Plan(edits, about(sites, edits), origin_of(model, "auto"))
    undo = plan.apply(model)
    after = run()
    for key, inner in known.items():
        new, (x, z) = edits[key].rewire, (seen[key, n].flatten(0, -2) for n in ("x", "z"))
        level = x @ new.gate.T + new.bias
        constant = new.constant if len(new.constant) else 0
        rows = inner.act(level) * (new.factor * level + constant if inner.up else 1)
        torch.testing.assert_close(z[:, new.index], rows, rtol=1e-3, atol=1e-4)
    save_checkpoint(model, None, tmp_path / "model")
    undo()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    classes = [getattr(transformers, f"AutoModelFor{name}") for name in AUTO]
    auto = next(each for each in classes if type(model.config) in each._model_mapping)
    again = auto.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again, batch), after, rtol=1e-5, atol=1e-5)


def test_the_page_of_families_is_up_to_date():
    root = Path(__file__).parents[2] / "docs"
    pinned = (root.parent / "constraints.txt").read_text(encoding="utf-8")
    if f"\ntransformers=={transformers.__version__}\n" not in pinned:
        pytest.skip("paths of modules are those of the pinned transformers")
    spec = importlib.util.spec_from_file_location("make_families", root / "make_families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (root / "families.md").read_text(encoding="utf-8")
    assert module.page() == page, "run: python docs/make_families.py"
    assert page.count("\n## ") == len(FAMILIES) >= 30
