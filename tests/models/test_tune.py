"""Gradients: attributions by an unbatched loop, losses by hand, training that leaves no trace."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional

import expunge
from expunge import tune
from expunge.bench import Bench
from expunge.collect import Counting
from expunge.config import RunConfig
from expunge.data import CONDITIONS, Example
from expunge.edit import fingerprint
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.evaluate import Answers
from expunge.gradients import collect_attributions
from expunge.methods.base import Grid
from expunge.models import Prompter
from expunge.plan import Plan, SiteEdit
from expunge.sites import down_module, find_sites

GRID = Grid(rates=(1e-2, 3e-2), steps=(1, 3), rank=2, batch_size=4)


def live(model, *towers):
    return [s for s in find_sites(model) if s.tower in towers and not s.dead]


# attributions


def slow_attributions(model, processor, rows, condition, site, positions):
    """dL/dm at m = 1 of z := m * z, which is z dL/dz: one example at a time, full logits."""
    units = []
    for batch in batches(model, Prompter(processor), rows, condition, batch_size=1):
        gate = {}

        def hook(_, inputs, gate=gate):
            gate["m"] = torch.ones_like(inputs[0], requires_grad=True)
            return (inputs[0] * gate["m"],)

        handle = down_module(model, site).register_forward_pre_hook(hook)
        logits = model(**batch.inputs).logits[0]
        handle.remove()
        at = torch.nonzero(batch.answer[0])[:, 0]
        loss = functional.cross_entropy(logits[at - 1], batch.inputs["input_ids"][0, at])
        (g,) = torch.autograd.grad(loss, gate["m"])
        g = g.reshape(-1, site.width)
        units.append(g[at - 1] if positions == "answer" else g)
    return torch.cat(units)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("positions", ["all", "answer"])
def test_attributions_by_an_autograd_loop(condition, positions, llava64, processor, few):
    towers = ("language",) if condition == "text" else ("vision", "connector", "language")
    sites = live(llava64, *towers)
    rows = [e for e in few["retain"] if e.has(condition)]
    required = [p.requires_grad for p in llava64.parameters()]
    found = collect_attributions(
        llava64,
        Prompter(processor),
        few["retain"],
        condition,
        sites=sites,
        counting=Counting(positions),
        batch_size=3,
    )
    assert [p.requires_grad for p in llava64.parameters()] == required
    assert all(p.grad is None for p in llava64.parameters())
    assert found.keys() == {s.key for s in sites}
    for site in (sites[0], sites[-1]):
        only = positions if site.tower == "language" else "all"
        slow = slow_attributions(llava64, processor, rows, condition, site, only)
        stats = found[site.key]
        assert stats.count == len(slow)
        scale = float(slow.abs().max())
        assert scale > 0
        torch.testing.assert_close(stats.mean_abs, slow.abs().mean(0), rtol=2e-4, atol=1e-6 * scale)
        torch.testing.assert_close(
            stats.mean_square, (slow**2).mean(0), rtol=4e-4, atol=1e-6 * scale**2
        )
        torch.testing.assert_close(
            stats.total, slow.sum(0), rtol=2e-4, atol=1e-5 * scale * len(slow) ** 0.5
        )


def test_attributions_do_not_depend_on_which_sites_are_watched(llava64, processor, few):
    """Watching a site must not cut the graph of those before it."""
    sites = live(llava64, "vision", "connector", "language")
    alone, among = (
        collect_attributions(llava64, Prompter(processor), few["forget"], "multi", sites=chosen)
        for chosen in (sites[:1], sites)
    )
    key = sites[0].key
    torch.testing.assert_close(alone[key].absolute, among[key].absolute, rtol=1e-6, atol=0)


def test_saliency_and_fisher_rank_by_the_ratio_of_attributions(llava, processor, few):
    sites = live(llava, "vision", "language")
    stats = {
        (name, c): collect_attributions(
            llava,
            Prompter(processor),
            few[name],
            c,
            sites=[s for s in sites if c == "multi" or s.tower == "language"],
        )
        for name in few
        for c in CONDITIONS
    }
    for method, field in (("saliency", "absolute"), ("fisher", "square")):
        means = {}
        for name in few:
            for site in sites:
                own = [stats[name, c][site.key] for c in CONDITIONS if site.key in stats[name, c]]
                total = sum(getattr(s, field) for s in own)
                means[name, site.key] = total / sum(s.count for s in own)
        unit = torch.cat([means["retain", s.key] for s in sites]).mean()
        plan = expunge.make_plan(llava, processor, few["forget"], few["retain"], method=method)
        for site in sites:
            ratio = means["forget", site.key] / (means["retain", site.key] + 1e-6 * unit)
            torch.testing.assert_close(plan.scores[site.key], ratio, rtol=1e-6, atol=0)
        assert sum(len(i) for i in plan.neurons().values()) == math.floor(
            0.02 * sum(s.width for s in sites)
        )


# objectives


def view_of(seed=0):
    rng = np.random.default_rng(seed)
    row, vocabulary = [0, 0, 0, 1, 2, 2], 7

    def answers():
        raw = torch.from_numpy(rng.normal(0, 2, (len(row), vocabulary)))
        target = torch.from_numpy(rng.integers(0, vocabulary, len(row)))
        return Answers(raw.log_softmax(-1), target, torch.tensor(row), 3)

    forget, retain, then_forget, then_retain = (answers() for _ in range(4))
    then_forget = Answers(then_forget.logp, forget.target, forget.row, 3)
    return tune.View(forget, retain, then_forget, then_retain)


def probabilities(answers):
    """Example -> the list of its answer tokens' probabilities, in float64 Python."""
    found = {}
    for i, row in enumerate(answers.row.tolist()):
        p = math.exp(float(answers.logp[i, answers.target[i]]))
        found.setdefault(row, []).append(p)
    return found


def slow_loss(answers):
    each = [-sum(map(math.log, ps)) / len(ps) for ps in probabilities(answers).values()]
    return sum(each) / len(each)


def slow_npo(view, beta=0.1):
    now, then = probabilities(view.forget), probabilities(view.forget_vanilla)
    terms = [math.log(1 + (math.prod(now[i]) / math.prod(then[i])) ** beta) for i in now]
    return 2 / beta * sum(terms) / len(terms)


def slow_kl(view):
    then, now = view.retain_vanilla.logp.exp().tolist(), view.retain.logp.exp().tolist()
    each = [
        sum(p * math.log(p / q) for p, q in zip(ps, qs, strict=True))
        for ps, qs in zip(then, now, strict=True)
    ]
    return sum(each) / len(each)


SLOW = {
    "ga": lambda v: -slow_loss(v.forget),
    "graddiff": lambda v: -slow_loss(v.forget) + slow_loss(v.retain),
    "kl": lambda v: -slow_loss(v.forget) + slow_kl(v),
    "npo": slow_npo,
    "npo-retain": lambda v: slow_npo(v) + slow_loss(v.retain),
    "idk": lambda v: slow_loss(v.forget) + slow_loss(v.retain),
}


@pytest.mark.parametrize("name", tune.OBJECTIVES)
def test_losses_are_the_formulas(name):
    for seed in range(3):
        view = view_of(seed)
        got = float(tune.OBJECTIVES[name].loss(view))
        assert got == pytest.approx(SLOW[name](view), rel=1e-10)


def test_at_vanilla_the_divergence_is_nothing_and_the_preference_two_log_two_over_beta():
    view = view_of()
    same = tune.View(view.forget, view.retain, view.forget, view.retain)
    assert float(tune.preference(same)) == pytest.approx(20 * math.log(2), rel=1e-12)
    assert float(tune.divergence(same)) == pytest.approx(-slow_loss(view.forget), rel=1e-12)


@torch.no_grad()
def test_answers_are_the_answer_tokens_alone(llava, processor, few):
    rows = [e for e in few["retain"] if e.has("text")]
    batch = next(iter(batches(llava, Prompter(processor), rows, "text")))
    answers = Answers.of(llava, batch)
    said = [[] for _ in batch.rows]
    for token, row in zip(answers.target.tolist(), answers.row.tolist(), strict=True):
        said[row].append(token)
    words = [processor.tokenizer.decode(tokens).strip() for tokens in said]
    assert words == [rows[i].answer for i in batch.rows]
    whole = model_losses(llava, batch)
    torch.testing.assert_close(answers.losses(), whole, rtol=1e-5, atol=1e-5)


def model_losses(model, batch):
    """Each example's loss the way transformers computes it, from labels."""
    found = []
    for i in range(len(batch.rows)):
        inputs = {k: v[i : i + 1] for k, v in batch.inputs.items()}
        labels = torch.where(batch.answer[i : i + 1], inputs["input_ids"], -100)
        found.append(model(**inputs, labels=labels).loss)
    return torch.stack(found)


# adapters


def test_adapters_start_at_nothing_and_leave_no_trace(llava, processor, few):
    sites = live(llava, "connector", "language")
    rows = [e for e in few["forget"] if e.has("multi")]
    batch = next(iter(batches(llava, Prompter(processor), rows, "multi")))
    before = fingerprint(llava)
    kinds = [(n, type(m)) for n, m in llava.named_modules()]
    first = next(llava.parameters())
    first.requires_grad_(False)
    with torch.no_grad():
        plain = llava(**batch.inputs).logits
        with pytest.raises(RuntimeError, match="on purpose"):
            with tune.adapters(llava, sites, 3, seed=1) as lora:
                assert torch.equal(llava(**batch.inputs).logits, plain)
                assert len(lora.parameters()) == 2 * len(sites)
                raise RuntimeError("on purpose")
        assert torch.equal(llava(**batch.inputs).logits, plain)
    assert fingerprint(llava) == before
    assert [(n, type(m)) for n, m in llava.named_modules()] == kinds
    assert not hasattr(llava, "peft_config")
    assert [p.requires_grad for p in llava.parameters()].count(False) == 1
    first.requires_grad_(True)


@torch.no_grad()
def test_factors_are_what_the_adapters_add(llava, processor, few):
    sites = live(llava, "vision", "connector", "language")
    rows = [e for e in few["forget"] if e.has("multi")]
    batch = next(iter(batches(llava, Prompter(processor), rows, "multi")))
    with tune.adapters(llava, sites, 3, seed=1) as lora:
        for number, weight in enumerate(lora.parameters()):
            torch.manual_seed(number)
            weight.normal_(0, 0.05)
        wanted = llava(**batch.inputs).logits
        with lora.off():
            plain = llava(**batch.inputs).logits
        factors = lora.factors()
    about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in sites}
    plan = Plan({k: SiteEdit(lowrank=f) for k, f in factors.items()}, about)
    with expunge.applied(llava, plan):
        torch.testing.assert_close(llava(**batch.inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    assert float((wanted - plain).abs().max()) > 1e-2
    assert torch.equal(llava(**batch.inputs).logits, plain)


# the search


def search(llava, processor, few, objective, **options):
    sites = live(llava, "connector", "language")
    given = {"grid": GRID, **options}
    return tune.Search(
        llava, Prompter(processor), few["forget"], few["retain"], sites, objective, **given
    )


@pytest.mark.parametrize("objective", tune.OBJECTIVES)
def test_every_objective_gets_the_same_search_and_gets_somewhere(objective, llava, processor, few):
    ticks = []
    found = search(llava, processor, few, objective, tick=ticks.append).run()
    notes = json.loads(json.dumps(found.notes, allow_nan=False))
    assert [(c["rate"], c["steps"]) for c in notes["candidates"]] == [
        (rate, steps) for rate in GRID.rates for steps in GRID.steps
    ]
    assert sum(ticks) == len(GRID.rates) * max(GRID.steps)
    assert notes["chosen"] in [{k: c[k] for k in ("rate", "steps")} for c in notes["candidates"]]
    assert {k: (a.shape[1], b.shape[0]) for k, (a, b) in found.factors.items()} == {
        s.key: (2, 2) for s in live(llava, "connector", "language")
    }
    far = next(c for c in notes["candidates"] if (c["rate"], c["steps"]) == (3e-2, 3))
    if objective == "idk":
        sites = live(llava, "connector", "language")
        about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in sites}
        plan = Plan({k: SiteEdit(lowrank=f) for k, f in found.factors.items()}, about)
        before = refusal_loss(llava, processor, few["forget"])
        with expunge.applied(llava, plan):
            assert refusal_loss(llava, processor, few["forget"]) < before
    else:
        assert far["forget_nll"] > notes["vanilla"]["forget_nll"] + 0.05


@torch.no_grad()
def refusal_loss(model, processor, rows):
    usable = [e for e in rows if e.has("text")]
    answers = [tune.refusal_for(e, 0) for e in usable]
    prompter = Prompter(processor)
    batch = next(iter(batches(model, prompter, usable, "text", answers=answers)))
    return float(Answers.of(model, batch).losses().mean())


def test_the_search_figures_are_those_of_the_plan_it_returns(llava, processor, few):
    """What the notes say of the chosen candidate holds for its factors as a plan."""
    one = search(llava, processor, few, "graddiff", keep=0.0)
    found = one.run()
    chosen = next(
        c
        for c in found.notes["candidates"]
        if all(c[k] == v for k, v in found.notes["chosen"].items())
    )
    about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in one.sites}
    plan = Plan({k: SiteEdit(lowrank=f) for k, f in found.factors.items()}, about)
    suite = expunge.Suite.of(forget=few["forget"])
    with expunge.applied(llava, plan):
        figures = expunge.evaluate(llava, processor, suite)["forget"]
    nll = sum(figures[c]["nll"] for c in CONDITIONS) / 2
    assert chosen["forget_nll"] == pytest.approx(nll, rel=1e-4)


def test_vanilla_reference_is_the_model_without_its_adapters(llava, processor, few):
    one = search(llava, processor, few, "kl")
    batch = next(one._views(few["retain"]))
    with torch.no_grad(), tune.adapters(llava, one.sites, 2, seed=0) as lora:
        start = one._view(batch, lora)
        for weight in lora.parameters():
            weight.normal_(0, 0.1)
        moved = one._view(batch, lora)
    assert torch.equal(start.retain.logp, start.retain_vanilla.logp)
    assert torch.equal(start.retain_vanilla.logp, moved.retain_vanilla.logp)
    assert float((moved.retain.logp - moved.retain_vanilla.logp).abs().max()) > 1e-3
    assert moved.forget_vanilla is None


def test_unknown_objective_and_a_search_that_only_diverges(llava, processor, few):
    with pytest.raises(InputError, match="Did you mean 'npo'"):
        search(llava, processor, few, "nop").run()
    wild = Grid(rates=(math.inf,), steps=(1,), rank=2, batch_size=4)
    with pytest.raises(InputError, match=r"diverged at every learning rate tried \(1 candidates\)"):
        search(llava, processor, few, "ga", grid=wild).run()


def candidate(forget, retain, nll=1.0, retain_nll=1.0):
    return {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "forget_nll": nll,
        "retain_nll": retain_nll,
    }


def test_choice_forgets_most_of_what_keeps_enough():
    good = [candidate(0.5, 1.0), candidate(0.2, 0.96), candidate(0.0, 0.9)]
    assert tune.choose(good, 0.95) == 1
    assert tune.choose([*good, candidate(0.2, 0.97, nll=3.0)], 0.95) == 3
    assert tune.choose(good, 1.1) == 0
    assert tune.choose([candidate(0.9, 0.5), candidate(0.4, 0.5)], 0.9) == 1
    broken = [candidate(0.0, 1.0, nll=math.nan), candidate(0.7, 1.0)]
    assert tune.choose(broken, 0.9) == 1
    with pytest.raises(InputError, match="diverged"):
        tune.choose([candidate(0.0, 1.0, retain_nll=math.inf)], 0.9)


def people(*subjects):
    return [
        Example(s, f"answer {i}", text_question=f"question {i}") for i, s in enumerate(subjects)
    ]


def test_held_out_people_are_not_trained_on():
    rows = people(*"aabbccddeeff", *"gh")
    train, out = tune.held_out(rows, 0.25, seed=3)
    assert not {e.subject for e in train} & {e.subject for e in out}
    assert len({e.subject for e in out}) == 2
    assert sorted(train + out, key=rows.index) == rows
    assert tune.held_out(rows, 0.25, seed=3) == (train, out)
    one_subject = people(*"aaaa")
    train, out = tune.held_out(one_subject, 0.25, seed=0)
    assert (len(train), len(out)) == (3, 1) and out[0] not in train
    assert tune.held_out(people("a"), 0.25, seed=0) == (people("a"), people("a"))


def test_batches_are_drawn_without_repeats_within_a_round():
    rows = people(*"abcdefg")
    rounds = list(islice(tune.drawn(rows, 3, seed=1), 9))
    assert [len(b) for b in rounds] == [3, 3, 1] * 3
    for i in range(0, 9, 3):
        seen = Counter(e.subject for b in rounds[i : i + 3] for e in b)
        assert seen == Counter("abcdefg")
    assert rounds[:3] != rounds[3:6]


# what else methods may ask


def test_quantiles_are_exact_over_both_conditions(llava, processor, few):
    sites = live(llava, "connector", "language")
    config = RunConfig(batch_size=3)
    bench = Bench(llava, Prompter(processor), few, sites, config)
    chosen = {"language.1": torch.tensor([0, 7, 500]), "connector.0": torch.tensor([3])}
    values = {key: [] for key in chosen}
    handles = [
        down_module(llava, s).register_forward_pre_hook(
            lambda m, i, key=s.key: values[key].append(i[0].flatten(0, -2).double())
        )
        for s in sites
        if s.key in chosen
    ]
    with torch.no_grad():
        for condition in CONDITIONS:
            rows = [e for e in few["retain"] if e.has(condition)]
            for batch in batches(llava, bench.prompter, rows, condition, batch_size=1):
                llava(**batch.inputs)
    for handle in handles:
        handle.remove()
    for level in (0.0, 0.5, 0.95, 1.0):
        found = bench.quantile("retain", level, chosen)
        assert found.keys() == chosen.keys()
        for key, index in chosen.items():
            wanted = np.quantile(torch.cat(values[key])[:, index].numpy(), level, axis=0)
            np.testing.assert_allclose(found[key].numpy(), wanted, rtol=1e-3, atol=1e-5)


def test_measuring_under_edits_and_an_unknown_measure(llava, processor, few):
    sites = live(llava, "language")
    bench = Bench(llava, Prompter(processor), few, sites, RunConfig())
    everything = {"language.0": SiteEdit(prune=torch.arange(512))}
    before, after = bench.measure("neurons"), bench.measure("neurons", everything)
    for data in before:
        first, last = before[data], after[data]
        torch.testing.assert_close(first["language.0"].absolute, last["language.0"].absolute)
        assert float((first["language.1"].total - last["language.1"].total).abs().max()) > 1e-3
    assert bench.subjects("forget") == sorted({e.subject for e in few["forget"]})
    with pytest.raises(InputError, match="unknown measure 'gate'.*Did you mean 'gates'"):
        bench.measure("gate")
