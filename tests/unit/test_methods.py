"""Methods: each against a slow computation of its own, and all of them end to end."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

import expunge
from expunge import methods
from expunge.data import CONDITIONS
from expunge.edit import fingerprint
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.methods import gradient, manu_released, prompting, selective, traits
from expunge.methods.base import Grid
from expunge.models import Prompter
from expunge.pipeline import evaluate_models
from expunge.plan import Plan
from expunge.selection import select
from expunge.sites import down_module, down_weight, find_sites
from expunge.stats import NeuronStats

NAMES = (
    *("manu-released", "selective", "selective-freq", "selective-rms", "selective-std"),
    *("saliency", "fisher", "traits", "ga", "graddiff", "kl", "npo", "npo-retain", "idk"),
    *("prompting",),
)


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    small = Grid(rates=(3e-2,), steps=(1, 2), rank=2, batch_size=3)
    monkeypatch.setattr(gradient, "GRID", small)


@pytest.fixture
def made(llava, processor, few):
    def make(method, **options):
        return expunge.make_plan(
            llava, processor, few["forget"], few["retain"], method=method, **options
        )

    return make


@torch.no_grad()
def logits_of(model, processor, rows):
    found = []
    for condition in CONDITIONS:
        usable = [e for e in rows if e.has(condition)]
        for batch in batches(model, Prompter(processor), usable, condition):
            found.append(model(**batch.inputs).logits[batch.mask])
    return torch.cat(found)


@torch.no_grad()
def heard(model, processor, rows, modules, *, outputs=False):
    """(name, condition) -> [units, width], examples one by one; images count whole."""
    found = defaultdict(list)
    now = {}
    handles = []
    for name, module in modules.items():

        def hook(_, inputs, output=None, name=name):
            value = output if outputs else inputs[0]
            found[name, now["condition"]].append(value.reshape(-1, value.shape[-1]).double())

        register = module.register_forward_hook if outputs else module.register_forward_pre_hook
        handles.append(register(hook))
    for condition in CONDITIONS:
        now["condition"] = condition
        usable = [e for e in rows if e.has(condition)]
        for batch in batches(model, Prompter(processor), usable, condition, batch_size=1):
            model(**batch.inputs)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(values) for key, values in found.items()}


@pytest.mark.parametrize("method", NAMES)
def test_plan_saves_reloads_applies_and_undoes(method, made, llava, processor, few, tmp_path):
    before, names = fingerprint(llava), [n for n, _ in llava.named_modules()]
    plain = logits_of(llava, processor, few["forget"])
    plan = made(method)
    assert fingerprint(llava) == before
    assert [n for n, _ in llava.named_modules()] == names
    with expunge.applied(llava, plan):
        edited = logits_of(llava, processor, few["forget"])
    assert bool(plan.edits) == (method != "prompting")
    assert torch.equal(edited, plain) == (method == "prompting")
    assert bool(edited.isfinite().all())
    again = Plan.load(plan.save(tmp_path / "plan.safetensors"))
    undo = again.apply(llava)
    assert torch.equal(logits_of(llava, processor, few["forget"]), edited)
    undo()
    assert fingerprint(llava) == before
    assert torch.equal(logits_of(llava, processor, few["forget"]), plain)
    words = json.dumps(again.header())
    assert not any(e.subject in words for rows in few.values() for e in rows)


@pytest.mark.parametrize("method", ["selective-freq", "saliency", "traits", "npo", "idk"])
def test_two_runs_make_the_same_plan(method, made):
    first, second = made(method, seed=5).tensors(), made(method, seed=5).tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_table_names_every_method_once():
    assert set(NAMES) <= methods.METHODS.keys()
    with pytest.raises(InputError, match="Did you mean 'saliency'"):
        methods.get("salience")


# manu-released


def slow_released_score(forget, retain):
    def importances(y):
        return {
            "abs": np.abs(y).mean(0),
            "std": y.std(0),
            "rms": np.sqrt((y**2).mean(0)),
        }

    mine, other = importances(forget), importances(retain)
    return sum(2 * (mine[k] / (other[k] + 1e-5) - 1) for k in mine)


def test_released_score_is_the_formula():
    rng = np.random.default_rng(0)
    forget, retain = rng.normal(1, 2, (40, 6)), rng.normal(0, 1, (30, 6))
    stats = [NeuronStats.zeros(6), NeuronStats.zeros(6)]
    for each, values in zip(stats, (forget, retain), strict=True):
        each.update(torch.from_numpy(values))
    got = manu_released.score(*stats)
    np.testing.assert_allclose(got.numpy(), slow_released_score(forget, retain), rtol=1e-10)


def linears_of(model, towers=("vision", "language")):
    found = {}
    for tower in towers:
        sites = [s for s in find_sites(model) if s.tower == tower and not s.dead]
        for site in sites[-3:]:
            block = model.get_submodule(site.path.rpartition(".")[0])
            names = ("gate_proj", "up_proj", "down_proj") if tower == "language" else ("fc1", "fc2")
            found |= {f"{site.key}/{name}": block.get_submodule(name) for name in names}
    return found


def test_released_zeroes_the_rows_that_score_highest(made, llava, processor, few):
    """Rows chosen by a slow loop and zeroed by hand give the same logits as the plan."""
    modules = linears_of(llava)
    raw = {n: heard(llava, processor, few[n], modules, outputs=True) for n in few}
    scores = {}
    for name in modules:
        condition = "text" if name.startswith("language") else "multi"
        mine, other = (raw[n][name, condition].numpy() for n in ("forget", "retain"))
        scores[name] = torch.from_numpy(slow_released_score(mine, other))
    rows = {}
    for tower in ("vision", "language"):
        rows |= select({n: s for n, s in scores.items() if n.startswith(tower)}, 0.05)
    assert {n.partition("/")[2] for n in rows} == {
        *("fc1", "fc2", "gate_proj", "up_proj", "down_proj")
    }
    with expunge.applied(llava, made("manu-released", budget=0.05)):
        edited = logits_of(llava, processor, few["forget"])
    kept = {n: (m.weight.clone(), None if m.bias is None else m.bias.clone())
            for n, m in modules.items()}  # fmt: skip
    with torch.no_grad():
        for name, index in rows.items():
            modules[name].weight[index] = 0
            if name.endswith("fc1"):
                modules[name].bias[index] = 0
        by_hand = logits_of(llava, processor, few["forget"])
        for name, (weight, bias) in kept.items():
            modules[name].weight.copy_(weight)
            if bias is not None:
                modules[name].bias.copy_(bias)
    torch.testing.assert_close(edited, by_hand, atol=1e-4, rtol=1e-4)


def test_released_takes_rows_of_down_out_exactly(made, llava):
    plan = made("manu-released", budget=0.2)
    sites = {s.key: s for s in find_sites(llava)}
    whole = {k: down_weight(llava, sites[k]).clone() for k in plan.edits}
    with expunge.applied(llava, plan):
        for key, edit in plan.edits.items():
            gone = edit.lowrank[0].abs().sum(1) > 0
            now = down_weight(llava, sites[key])
            assert 0 < int(gone.sum()) < len(gone)
            assert int((now[gone] != 0).sum()) == 0
            rest = torch.ones(now.shape[1], dtype=torch.bool)
            rest[edit.neurons()] = False
            assert torch.equal(now[~gone][:, rest], whole[key][~gone][:, rest])


def test_released_needs_questions_under_the_condition_of_its_tower(llava, processor, few):
    pictures = [e for e in few["forget"] if e.has("multi")]
    blind = [expunge.Example(e.subject, e.answer, text_question=e.text_question) for e in pictures]
    with pytest.raises(InputError, match="needs multi questions in the forget set"):
        expunge.make_plan(llava, processor, blind, few["retain"], method="manu-released")


# selective


READ = {
    "abs": lambda z: z.abs().mean(0),
    "freq": lambda z: (z > 0).double().mean(0),
    "rms": lambda z: (z**2).mean(0).sqrt(),
    "std": lambda z: z.std(0, correction=0),
}


def slow_selective(model, processor, few, reading, eps=1e-6):
    sites = [s for s in find_sites(model, attention=True) if not s.dead]
    sites = [s for s in sites if s.tower in ("vision", "language")]
    modules = {s.key: down_module(model, s) for s in sites}
    raw = {n: heard(model, processor, few[n], modules) for n in few}
    both = {
        n: {k: torch.cat([v for (key, _), v in raw[n].items() if key == k]) for k in modules}
        for n in few
    }
    return sites, {
        k: reading(both["forget"][k]) / (reading(both["retain"][k]) + eps) for k in modules
    }


@pytest.mark.parametrize("name", READ)
def test_selective_scores_by_a_slow_loop(name, made, llava, processor, few, monkeypatch):
    monkeypatch.setattr(selective, "ROUNDS", 1)
    sites, scores = slow_selective(llava, processor, few, READ[name])
    plan = made("selective" if name == "abs" else f"selective-{name}", budget=0.04)
    for key, score in plan.scores.items():
        torch.testing.assert_close(score, scores[key], rtol=1e-4, atol=1e-4)
    for attention, fraction in ((False, 0.04), (True, 0.01)):
        keys = [s.key for s in sites if (s.kind == "attention") == attention]
        width = sum(s.width for s in sites if s.key in keys)
        number = sum(len(i) for k, i in plan.neurons().items() if k in keys)
        assert number == math.floor(fraction * width)
        least = min(plan.scores[k][i].min() for k, i in plan.neurons().items() if k in keys)
        assert sum(int((plan.scores[k] > least).sum()) for k in keys) < number


def test_selective_takes_statistics_again_from_the_pruned_model(
    made, llava, processor, few, monkeypatch
):
    """The second round's scores are those a slow loop finds on the model after the first."""
    monkeypatch.setattr(selective, "ROUNDS", 1)
    first = made("selective", budget=0.1)
    with expunge.applied(llava, first):
        _, scores = slow_selective(llava, processor, few, READ["abs"])
    monkeypatch.setattr(selective, "ROUNDS", 2)
    both = made("selective", budget=0.2)
    changed = 0
    for key, score in both.scores.items():
        fresh = torch.ones(len(score), dtype=torch.bool)
        if key in first.edits:
            gone = first.edits[key].neurons()
            assert set(gone.tolist()) <= set(both.edits[key].neurons().tolist())
            assert torch.equal(score[gone], first.scores[key][gone])
            fresh[gone] = False
        torch.testing.assert_close(score[fresh], scores[key][fresh], rtol=1e-4, atol=1e-4)
        changed += int(((score - first.scores[key]).abs()[fresh] > 1e-3).sum())
    assert changed > 100


# traits


def test_weight_of_a_difference_is_logistic():
    delta = torch.tensor([0.15, -0.15, 0.25, 1.0], dtype=torch.float64)
    expected = [0.5, 0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-8.5))]
    assert traits.weight_of(delta).tolist() == pytest.approx(expected, rel=1e-12)


def test_trait_neurons_and_their_steering_by_a_slow_loop(made, llava, processor, few):
    sites = [s for s in find_sites(llava) if s.tower == "language"]
    gates = {
        s.key: llava.get_submodule(s.path.rpartition(".")[0]).get_submodule("act_fn") for s in sites
    }
    downs = {s.key: down_module(llava, s) for s in sites}
    share = {}
    for name in few:
        acts = heard(llava, processor, few[name], gates, outputs=True)
        for key in gates:
            values = torch.cat([v for (k, _), v in acts.items() if k == key])
            share[name, key] = (values > 0).double().mean(0)
    z = heard(llava, processor, few["retain"], downs)
    plan = made("traits", strength=1.5)
    for site in sites:
        delta = share["retain", site.key] - share["forget", site.key]
        index, add, off = plan.edits[site.key].steer
        assert index.tolist() == torch.nonzero(delta.abs() > 0.1)[:, 0].tolist()
        assert off.tolist() == (delta[index] < 0).tolist()
        values = torch.cat([v for (k, _), v in z.items() if k == site.key])[:, index]
        high = np.quantile(values.numpy(), 0.95, axis=0)
        gain = 1 / (1 + np.exp(-10 * (np.abs(delta[index].numpy()) - 0.15)))
        expected = np.where(off.numpy(), 0.0, 1.5 * high * gain)
        np.testing.assert_allclose(add.numpy(), expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(plan.scores[site.key], -delta)


def test_steering_acts_while_generating_and_goes_again(made, llava, processor, few):
    plan = made("traits")
    site = next(s for s in find_sites(llava) if s.tower == "language")
    index, add, off = plan.edits[site.key].steer
    rows = [e for e in few["forget"] if e.has("text")][:2]
    batch = next(iter(batches(llava, Prompter(processor), rows, "text", prompt_only=True)))

    def generated():
        entered, written = [], []
        down = down_module(llava, site)
        block = llava.get_submodule(site.path.rpartition(".")[0])
        handles = [
            block.up_proj.register_forward_hook(lambda m, i, o: written.append(o)),
            block.act_fn.register_forward_hook(lambda m, i, o: written.append(o)),
            down.register_forward_pre_hook(lambda m, i: entered.append(i[0])),
        ]
        out = llava.generate(**batch.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        for handle in handles:
            handle.remove()
        made_of = [a * b for a, b in zip(written[::2], written[1::2], strict=True)]
        return out, entered, made_of

    plain = generated()[0]
    undo = plan.apply(llava)
    _, entered, natural = generated()
    assert len(entered) == 4
    for now, before in zip(entered, natural, strict=True):
        wanted = before.clone()
        wanted[..., index] += add
        wanted[..., index[off]] = wanted[..., index[off]].clamp_max(0)
        torch.testing.assert_close(now, wanted)
    undo()
    assert torch.equal(generated()[0], plain)


# prompting


def test_prompting_names_subjects_only_when_asked(made, few):
    names = {e.subject for e in few["forget"]}
    plan, named = made("prompting"), made("prompting", show_content=True)
    assert plan.system_prompt == prompting.PROMPT == plan.provenance["system_prompt"]
    assert all(name in named.system_prompt for name in names)
    assert "notes" not in plan.provenance
    with pytest.raises(InputError, match="prompting needs the processor's chat template"):
        made("prompting", prompt_template="Q: {image}{question} A: ")


def test_plans_keep_their_system_prompts_when_they_compose(made):
    plan, pruning = made("prompting"), made("random")
    assert pruning.system_prompt is None
    assert (plan + pruning).system_prompt == (pruning + plan).system_prompt == prompting.PROMPT
    assert (plan + pruning + plan).system_prompt == f"{prompting.PROMPT}\n{prompting.PROMPT}"


def test_the_unlearned_model_is_asked_under_the_system_prompt(
    made, llava, processor, few, tmp_path
):
    base = expunge.save_checkpoint(llava, processor, tmp_path / "base")
    path = made("prompting").save(tmp_path / "plan.safetensors")
    suite = expunge.Suite.of(forget=few["forget"][:2])
    config = expunge.pipeline.RunConfig.of({"model": str(base), "method": "prompting"})
    found = evaluate_models({"vanilla": str(base), "unlearned": path}, suite, config)["models"]
    for name, system in (("vanilla", None), ("unlearned", prompting.PROMPT)):
        prompter = Prompter(processor, system=system)
        alone = expunge.evaluate(llava, processor, suite, prompter=prompter)
        for condition in CONDITIONS:
            cell = found[name]["forget"][condition]
            assert cell["nll"] == pytest.approx(alone["forget"][condition]["nll"], rel=1e-5)
    nlls = [found[n]["forget"]["text"]["nll"] for n in ("vanilla", "unlearned")]
    assert abs(nlls[0] - nlls[1]) > 1e-3
