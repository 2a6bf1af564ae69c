"""The default method on the embedded world: what it does, and that its neurons are what it says."""

import contextlib
import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from expunge import evidence, judge, methods, precision
from expunge.bench import Bench
from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.detectors import Background
from expunge.edit import applied, edited, fingerprint, save_checkpoint
from expunge.encoding import batches
from expunge.ends import end_directions
from expunge.errors import InputError
from expunge.evaluate import ask
from expunge.evidence import gather
from expunge.fiction.shipped import checkpoint, suite
from expunge.methods import chain, erase, gated, spare
from expunge.methods.base import (
    ASIDE,
    END,
    ENDS_SET,
    NOISE_SET,
    PICTURE,
    PLAIN_SET,
    UNSEEN_SET,
    Fit,
    Tokens,
    Verdict,
    spread,
)
from expunge.methods.chain import POOR, Chain, left_over
from expunge.methods.erase import Erased
from expunge.methods.neurons import GAIN, SHARP, Found, Place, edits_at
from expunge.methods.seek import Bounds, Kept, Looked, Seeker
from expunge.methods.spare import Spare
from expunge.methods.swap import Usual, written
from expunge.models import Prompter, load
from expunge.plan import Plan, SiteEdit
from expunge.planning import chosen_sites, make_plan, settled
from expunge.probe_set import ProbeSet
from expunge.sites import explains, find_sites, inner_of

GROUP = 1  # one of those that constants were chosen on


@pytest.fixture(scope="module")
def world():
    return load(checkpoint("vanilla"))


@pytest.fixture(scope="module")
def questions():
    return suite(5, GROUP).sets


@pytest.fixture(scope="module")
def plan(world, questions):
    """Of one round and with little noise, which is quicker."""
    with little_noise(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gated, "ROUNDS", 1)
        return make_plan(*world, questions["forget"], questions["retain"][::2])


def spares(number):
    """So many neurons of a site, which say nothing that the others could foretell."""
    pool, whole = torch.arange(number), torch.eye(number)
    return Spare(pool, torch.zeros(5, number), whole, whole.double(), whole.double(), 1.0)


def few(questions, place):
    """A few questions about one person, and some of those to be kept."""
    who = sorted({e.subject for e in questions["forget"]})[place]
    forget = [e for e in questions["forget"] if e.subject == who]
    return forget[::3], questions["retain"][::10]


@contextlib.contextmanager
def little_noise(number=24):
    """Within the block the default method makes little noise and asks little, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("noise_like", "altered_like", "related_like"):
            patch.setattr(evidence, name, partial(getattr(evidence, name), number=number))
        patch.setattr(evidence, "told_by", partial(evidence.told_by, number=64))
        patch.setattr(evidence, "OWN", number // 3)
        patch.setattr(judge, "FORGET", 48)
        yield


@pytest.mark.parametrize("name", ["auto", "filter-search"])
def test_half_the_bits_do_for_the_default_method_alone(world, questions, name, monkeypatch):
    """What enters sites and its moments, against those in all bits; sums stay in float64."""
    forget, retain = few(questions, 0)
    sets = {"forget": forget, "retain": retain[::3]}
    config = settled(RunConfig.of({"method": name}))
    sites = chosen_sites(world[0], config)
    kept = "retain" if name == "auto" else "retain 0"

    def gathered():
        with little_noise():
            return gather(world[0], Prompter(world[1]), sets, sites, config, methods.get(name))

    def moments(found):
        return [found.moments[kept, "text"][s.key].mean.clone() for s in sites]

    exact = gathered()
    whole = moments(exact)
    entered = exact.access.tokens("forget", "text", ["language.2"])["language.2"].x
    monkeypatch.setattr(precision, "pays", lambda model: True)
    half = gathered()
    read = half.access.tokens("forget", "text", ["language.2"])["language.2"].x
    assert read.dtype == torch.float32
    assert 1e-4 < float((read - entered).norm() / entered.norm()) < 0.05
    for m, w in zip(moments(half), whole, strict=True):
        assert m.dtype == torch.float64
        if name == "auto":
            assert 1e-5 < float((m - w).norm() / w.norm()) < 0.05
            assert float((m - m.T).abs().max()) == 0 and float(m.diagonal().min()) >= 0
        else:
            assert torch.equal(m, w)


def planned(world, questions, place, noise=24):
    with little_noise(noise):
        return make_plan(*world, *few(questions, place), strength=1.0)


@pytest.fixture(scope="module")
def small(world, questions):
    """A plan at a given strength, of one person and few questions."""
    return planned(world, questions, 0)


def accuracy(world, rows, condition):
    return ProbeSet(world[0], Prompter(world[1]), rows, condition).run(world[0]).accuracy


def logits(model, processor, rows, condition="text"):
    (batch,) = batches(model, Prompter(processor), rows, condition, batch_size=len(rows))
    with torch.inference_mode():
        return model(**batch.inputs).logits


def entering(world, module, rows):
    """What enters a module, [n, in], while rows are asked in text."""
    seen = []
    hook = module.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    try:
        logits(*world, rows)
    finally:
        hook.remove()
    return seen[0].flatten(0, 1)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_it_forgets_and_keeps(world, questions, plan, condition):
    with applied(world[0], plan):
        found = {n: accuracy(world, rows, condition) for n, rows in questions.items()}
    assert found["forget"] <= 0.25 and found["test"] <= 0.28
    assert found["retain"] >= 0.98 and found["neighbor"] >= 0.94
    # what no retain question resembles is not at its target yet: docs/results.md
    assert found["real"] >= 0.95 and found["skills"] >= 0.85


def test_the_plan_is_small_and_tells_its_search(world, plan):
    size = sum(p.numel() * p.element_size() for p in world[0].parameters())
    assert plan.bytes < 0.15 * size
    (picked,) = [s for s in plan.provenance["notes"]["search"]["steps"] if s["chosen"]]
    assert picked["kept"] >= RunConfig().keep and set(picked["likelier"]) == set(CONDITIONS)
    start = plan.provenance["notes"]["search"]["steps"][0]
    assert math.isclose(start["kept"], 1.0)
    assert min(picked["forget_nll"].values()) > max(start["forget_nll"].values())


def test_undo_is_bit_exact_and_takes_the_bias_away(world, small):
    model = world[0]
    before, names = fingerprint(model), [n for n, _ in model.named_parameters()]
    with applied(model, small):
        assert fingerprint(model) != before and model.config.text_config.mlp_bias
    assert fingerprint(model) == before
    assert [n for n, _ in model.named_parameters()] == names
    assert not model.config.text_config.mlp_bias


def test_saved_and_loaded_again_it_says_the_same(world, small, questions, tmp_path):
    model, processor = world
    with applied(model, small):
        save_checkpoint(model, processor, tmp_path / "model")
        said = logits(model, processor, questions["forget"][:3])
    again, processor = load(tmp_path / "model")
    assert torch.equal(logits(again, processor, questions["forget"][:3]), said)


def test_a_plan_file_holds_it_whole(small, tmp_path):
    read = Plan.load(small.save(tmp_path / "plan.safetensors"))
    for key, edit in small.edits.items():
        assert read.edits[key].kind == edit.kind and read.edits[key].count == edit.count
        for name, tensor in edit.tensors().items():
            assert torch.equal(read.edits[key].tensors()[name], tensor)


def test_new_neurons_do_what_the_plan_says(world, small, questions):
    """At one site, against a loop over neurons in float64; every second grows with the square."""
    model, processor = world
    key, edit = next(iter(small.edits.items()))
    new = edit.rewire
    assert len(new.index) > 1 and bool((new.constant > 0).any())
    assert bool(((new.constant == 0) != (new.factor == 0)).all())
    steep = torch.arange(len(new.index)) % 2 == 0
    factor, constant = (
        torch.where(steep, new.constant / SHARP, 0),
        torch.where(steep, 0, new.constant),
    )
    new = replace(new, factor=factor, constant=constant)
    site = next(s for s in find_sites(model) if s.key == key)
    block = model.get_submodule(site.path.rpartition(".")[0])
    seen = []
    hook = block.register_forward_hook(lambda m, given, out: seen.append((given[0], out)))
    try:
        logits(model, processor, questions["forget"][:2])
        only = Plan({key: replace(edit, lowrank=None, rewire=new)}, {key: small.sites[key]})
        with applied(model, only, check=False):
            logits(model, processor, questions["forget"][:2])
    finally:
        hook.remove()
    (x, out), (_, changed) = ((a.double().flatten(0, 1), b.double().flatten(0, 1)) for a, b in seen)
    weights = {n: p.detach().double() for n, p in block.named_parameters()}
    expected = out.clone()
    for i, neuron in enumerate(new.index.tolist()):
        gate, up = (weights[f"{n}.weight"][neuron] for n in ("gate_proj", "up_proj"))
        old = nn.functional.silu(x @ gate) * (x @ up)
        level = x @ new.gate[i].double() + float(new.bias[i])
        beside = float(new.factor[i]) * level + float(new.constant[i])
        z = nn.functional.silu(level) * beside
        expected += z[:, None] * new.down[:, i].double()
        expected -= old[:, None] * weights["down_proj.weight"][:, neuron]
    assert torch.allclose(changed, expected, atol=2e-4)
    assert (changed - out).abs().max() > 0.1


def test_on_what_is_kept_new_neurons_are_silent(world, questions, small):
    """Every new neuron stays at nothing on the retain questions that it was made with."""
    model, processor = world
    key, edit = next(iter(small.edits.items()))
    site = next(s for s in find_sites(model) if s.key == key)
    index, seen = edit.rewire.index, []

    def peak(rows):
        """Greatest value of the new neurons at any position that holds a token."""
        (batch,) = batches(model, Prompter(processor), rows, "text", batch_size=len(rows))
        with torch.inference_mode():
            model(**batch.inputs)
        return float(seen.pop()[batch.mask][:, index].max())

    with applied(model, small):
        down = model.get_submodule(site.path)
        hook = down.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
        try:
            gone, kept = (peak(rows) for rows in few(questions, 0))
        finally:
            hook.remove()
    assert kept < 0.01 * gone


def test_others_make_up_for_the_neurons_given_up(world, questions, monkeypatch):
    """On questions about neighbours, of whom the plan saw nothing, at every site and in all."""
    model, all_lost, all_left = world[0], 0.0, 0.0
    monkeypatch.setattr(erase, "LEVELS", ())  # else the factors hold what is taken out too
    monkeypatch.setattr(spare, "HEARD", 1e-3)  # else those few are let go: nobody hears them
    rewired = planned(world, questions, 0, noise=64).edits
    assert rewired
    for key, edit in rewired.items():
        site = next(s for s in find_sites(model) if s.key == key)
        down, gone = model.get_submodule(site.path), edit.rewire.index
        z, weight = entering(world, down, questions["neighbor"][:40]), down.weight.detach()
        out, foretold = (factor.float() for factor in edit.lowrank)
        assert float((out @ foretold)[:, gone].abs().max()) < 1e-4
        lost = z[:, gone] @ weight[:, gone].T
        left = lost - z @ (out @ foretold).T
        assert left.norm() < 0.85 * lost.norm()
        all_lost += float(lost.square().sum())
        all_left += float(left.square().sum())
    assert all_left < 0.5 * all_lost


def test_new_neurons_do_not_end_answers(world, plan, questions):
    """What they write says nothing about the end, and no more answers are empty than before."""
    ends = end_directions(world[0])
    for edit in plan.edits.values():
        if edit.rewire is not None:
            along = (ends.T @ edit.rewire.down.float()).norm(dim=0)
            assert (along <= 0.02 * edit.rewire.down.norm(dim=0)).all()  # the plan's own precision
    with applied(world[0], plan):
        said = ask(world[0], Prompter(world[1]), questions["forget"][::3], "multi")
    assert sum(not row.said for row in said) <= 0.05 * len(said)


def test_it_repeats_itself(world, questions, small):
    again = planned(world, questions, 0)
    assert again.header() == small.header()
    tensors = small.tensors()
    assert set(tensors) == set(again.tensors())
    assert all(torch.equal(t, tensors[n]) for n, t in again.tensors().items())


def test_it_reads_no_site_after_its_own_neurons(world, questions, monkeypatch):
    """New neurons of a site that it comes back to would write only what those there leave over."""
    read = []
    listen = Bench.tokens

    def spied(self, name, condition, keys, edits=None, **options):
        if options.get("apart"):
            read.append((keys, {k for k, e in (edits or {}).items() if e.rewire is not None}))
        return listen(self, name, condition, keys, edits, **options)

    monkeypatch.setattr(Bench, "tokens", spied)
    monkeypatch.setattr(gated, "ROUNDS", 2)
    monkeypatch.setattr(gated, "NEARLY", 2.0)
    monkeypatch.setattr(chain, "POOR", 2.0)  # whoever is left after the ends is known too well
    with little_noise():
        make_plan(*world, *few(questions, 0))
    (first,) = read[0][0]  # it goes through the sites twice
    assert not any(set(keys) & written for keys, written in read)
    assert any(first in written for _, written in read)
    assert sum(keys == [first] for keys, _ in read) > 2


def test_plans_compose_in_either_order(world, questions, small):
    model = world[0]
    plans = [small, planned(world, questions, 1)]
    both, turned = (a + b for a, b in (plans, plans[::-1]))
    for key, edit in both.edits.items():
        other = turned.edits[key]
        if edit.lowrank is not None:
            assert torch.allclose(*(a @ b for a, b in (edit.lowrank, other.lowrank)), atol=1e-6)
        if edit.rewire is not None:
            for name, tensor in SiteEdit(rewire=edit.rewire).tensors().items():
                assert torch.equal(tensor, SiteEdit(rewire=other.rewire).tensors()[name])
    new = [
        sum(len(e.rewire.index) for e in p.edits.values() if e.rewire is not None)
        for p in (*plans, both)
    ]
    assert new[2] == new[0] + new[1] > 0
    with applied(model, both):
        for place, condition in itertools.product(range(2), CONDITIONS):
            assert accuracy(world, few(questions, place)[0], condition) < 0.7


def test_as_an_adapter_it_says_the_same(small, questions, tmp_path):
    """To 1e-4 where sums are float64; in float32 to 3e-5 of the largest logit, by rounding."""
    from peft import PeftModel

    model, processor = load(checkpoint("vanilla"))
    with pytest.raises(InputError, match="vanilla model"):
        small.to_peft(tmp_path / "adapter")
    small.to_peft(tmp_path / "adapter", model)
    rows = questions["forget"][:3]
    for dtype, tolerance in ((torch.float32, 3e-5), (torch.float64, None)):
        model = load(checkpoint("vanilla"))[0].to(dtype)
        with edited(model, {s.key: s for s in find_sites(model)}, small.edits):
            said = logits(model, processor, rows)
        adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval().to(dtype)
        most = 1e-4 if tolerance is None else tolerance * float(said.abs().max())
        assert float((logits(adapted, processor, rows) - said).abs().max()) <= most


def test_a_layout_is_believed_only_if_it_explains_what_is_seen(world):
    model = world[0]
    site = next(s for s in find_sites(model) if s.tower == "language")
    inner = inner_of(model, site)
    block = model.get_submodule(site.path.rpartition(".")[0])
    x = torch.randn(5, block.gate_proj.in_features)
    with torch.inference_mode():
        z = nn.functional.silu(block.gate_proj(x)) * block.up_proj(x)
    assert explains(model, site, inner, x, z)
    assert not explains(model, site, inner, x, z.flip(1))


def test_sites_are_spread_evenly_from_the_first_to_the_last():
    assert spread([*range(30)], 8) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert spread([*range(30)], 2) == [0, 29]
    for number in range(3, 40):
        chosen = spread([*range(number)], 8)
        assert len(chosen) == min(number, 8) and chosen[0] == 0 and chosen[-1] == number - 1
        steps = {b - a for a, b in itertools.pairwise(chosen)}
        assert min(steps) > 0 and max(steps) - min(steps) <= 1


def test_where_questions_end_every_site_is_looked_at_as_if_it_were_the_only_one():
    """Two people, two conditions, three sites, one of which can have no threshold."""
    keys, parts = ["a", "b", "c"], {"x": "x", "y": ""}
    given, looks = [], []

    @dataclass
    class Read:
        key: str
        condition: str
        questions: int = 9

        def of_first(self, number):
            return replace(self, questions=number)

    def tokens(name, condition, sites, edits, **options):
        given.append((name, condition, sites, edits, options))
        return {key: Read(key, condition) for key in sites}

    @dataclass
    class Seek:
        place: Place

        def seek(self, looked, view):
            t = looked.tokens
            looks.append((t.key, t.condition, t.questions, looked.data, len(self.place.found)))
            assert view == END and looked.number == 1
            return [*self.place.found, *((part, who) for who, part in looked.parts.items())]

    class Scripted(Chain):
        def _seekers(self, key):
            if key == "b":
                return []
            for places in (self.places, self.shadow):
                places[key] = Place(Fit(True, True), None, spares(9))
            return [Seek(places[key]) for places in (self.places, self.shadow)]

    access = SimpleNamespace(tokens=tokens, owners=lambda data, condition: "xxy")
    evidence = SimpleNamespace(access=access, judge=SimpleNamespace(groups=parts))
    chain = Scripted(evidence, None, None, Bounds(), Erased({"a": "taken out"}))
    chain.kept = SimpleNamespace(keys=keys)
    chain.begin()
    assert [each[:2] for each in given] == [(ENDS_SET, c) for c in CONDITIONS]
    for _, _, sites, edits, options in given:
        assert sites == keys and edits == {"a": "taken out"}
        assert options == {"ends": True, "streams": True}
    # Twice for what is found without the people put aside. The questions as they are first, then
    # all, at which no detector of those speaks; nothing else found is seen by the next.
    each = [("forget", 3, 0), (ENDS_SET, 9, 2)]
    assert looks == [
        (key, c, questions, data, found)
        for key in "ac"
        for _ in range(2)
        for c in CONDITIONS
        for data, questions, found in each
    ]
    for places in (chain.places, chain.shadow):
        assert places.keys() == {"a", "c"}
        for place in places.values():
            assert place.found == [((c, parts[who]), who) for c in CONDITIONS for who in "xyxy"]


def test_a_site_is_looked_through_for_conditions_under_which_somebody_is_known():
    """One of three people is known by 0.6 with picture and by 0.3 in text, the others not."""

    def seen(multi, text):
        recalled = {"multi": multi, "text": text}
        even = dict.fromkeys(CONDITIONS, 0.4)
        return Verdict(recalled, {}, {}, {}, {}, even, dict.fromkeys(CONDITIONS, 0.0))

    apart = {"a": seen(0.6, 0.3), "b": seen(0.0, 0.0), "c": seen(0.0, 0.0)}
    now = replace(seen(0.2, 0.1), apart=apart)
    assert left_over(now, 1.0) == {"multi", "text"}
    assert left_over(now, POOR) == {"multi"}
    assert left_over(now, 0.3) == set()


def test_of_what_a_site_gives_each_part_keeps_what_forgets_it_best():
    """What is recalled of two people is what the last detector of each says."""
    script = {
        "a": [{"x": 0.6, "y": 0.9}, {"x": 0.7, "y": 0.2}],  # for x the first addition is better
        "b": [{"x": 0.9, "y": 0.18}],  # worse for x, and for y no better to speak of
        "c": [{"x": 0.0, "y": 0.0}],  # better for both, but texts pay
        "d": [{"x": 0.0, "y": 0.0}],  # two sites gave nothing: neither turn comes to it
    }
    visits = []

    def judge(found, without):
        recalled = {"x": 1.0, "y": 1.0} | {f.part[1]: f.recalls for f in found}
        each = {
            who: Verdict({"multi": r}, {}, {}, {}, {}, {"multi": 0.4}, {"multi": 0.0})
            for who, r in recalled.items()
        }
        said = [0.5 * any(f.site == "c" for f in found)] * 4
        return replace(each["x"], apart=each, said=said)

    class Scripted(Chain):
        def edits(self, strengths):
            return [f for place in self.places.values() for f in place.found]

        def _site(self, key, now, left):
            visits.append(key)
            for places in (self.places, self.shadow):
                places.setdefault(key, Place(Fit(True, True), None, spares(9)))
            for recalls in script[key]:
                for places in (self.places, self.shadow):
                    new = [
                        SimpleNamespace(part=("multi", who), recalls=r, site=key)
                        for who, r in recalls.items()
                    ]
                    places[key].found = [*places[key].found, *new]
                yield judge(self.edits({}), [])

    access = SimpleNamespace(fit=lambda key: Fit(True, True))
    sites = [SimpleNamespace(key=key) for key in script]
    evidence = SimpleNamespace(access=access, judge=judge, sites=sites)
    chain = Scripted(evidence, judge([], []), judge([], []), Bounds(), Erased())
    chain.kept = SimpleNamespace(keys=list(script))
    assert chain.go_on({})
    assert visits == [*"abcab"]
    for places in (chain.places, chain.shadow):
        assert not places["b"].found and not places["c"].found
        found = {who: [f.recalls for f in places["a"].found if f.part[1] == who] for who in "xy"}
        assert found == {"x": [0.6], "y": [0.9, 0.2]}
    assert not chain.go_on({})  # what helps has been found


@pytest.mark.parametrize(
    ("orders", "helps", "asked", "taken"),
    [
        ([0.97, 0.99], True, 1, 0.97),
        ([0.5, 0.96, 0.99], True, 2, 0.96),
        ([0.5, 0.4, 0.6, 0.9], True, 3, 0.6),
        ([0.5, 0.99], False, 1, 0.5),
    ],
)
def test_rounds_go_on_until_enough_is_forgotten_and_the_best_is_taken(
    monkeypatch, orders, helps, asked, taken
):
    runs, left = [], list(orders)

    class Scripted(SimpleNamespace):
        found = True

        def begin(self):
            assert not runs

        def go_on(self, strengths):
            runs.append(dict(strengths))
            return helps

    def made(evidence, *_):
        return Scripted(evidence=evidence, erased=Erased(), views={}, places=places, bounds=bounds)

    def searched(chain, keep):
        order = left.pop(0)
        step = SimpleNamespace(least=order, strengths={("multi", ""): order})
        return gated.Searched({"site": order}, step, {})

    bounds = SimpleNamespace(positions=1, sites=1)
    places = {"site": SimpleNamespace(found=[1])}
    monkeypatch.setattr(gated, "Chain", made)
    monkeypatch.setattr(gated, "erase", lambda _: Erased())
    monkeypatch.setattr(gated, "grounds", lambda _: {})
    monkeypatch.setattr(gated, "searched", searched)
    evidence = SimpleNamespace(
        judge=lambda *_: Verdict({"multi": 1.0}, {}, {}, {}, {}),
        weight=lambda _: torch.zeros(1, 1),
        sites=[SimpleNamespace(key="site")],
        access=SimpleNamespace(owners=lambda *_: []),
    )
    outcome = gated.decide(evidence, RunConfig())
    assert len(orders) - len(left) == asked and outcome.edits == {"site": taken}
    tried = orders[:asked] if not helps else orders[: asked - 1]
    assert runs == [{("multi", ""): order} for order in tried]


def test_each_part_is_looked_at_in_the_view_that_forgets_more_of_it():
    """Beside the picture for w and y, in it for x; z is not looked at.

    w is forgotten by the first view and not looked at in the other. Of y the second forgets little
    more. What is found later at the same site is found in the views that were better at first.
    """
    place, shadow = (Place(Fit(True, True), None, spares(40)) for _ in range(2))
    parts = {who: ("multi", who) for who in "wxyz"}
    mute = Found(parts["z"], "z", torch.ones(8), 0.4, torch.ones(5))
    known = {
        "multi": {"w": 0.0, "x": 0.8, "y": 0.5},
        PICTURE: {"x": 0.4, "y": 0.48},
    }
    edges = {"multi": 0.3, PICTURE: 0.6, "text": 0.5}
    asked, judged = [], []

    def seek(looked, view):
        asked.append((view, "".join(sorted(looked.parts))))
        new = [replace(mute, part=part, edge=edges[view]) for part in looked.parts.values()]
        return [mute, *new]

    def about(edits, asked):
        view = next(v for v in edges if edges[v] == edits[-1].edge)
        judged.append((view, "".join(sorted(who for _, who in asked))))
        each = {
            who: Verdict(
                {"multi": known[view][who]}, {}, {}, {}, {}, {"multi": 0.4}, {"multi": 0.0}
            )
            for _, who in asked
        }
        return replace(next(iter(each.values())), apart=each)

    class Plain(Chain):
        def _of(self, places, strengths):
            return places["site"].found

    judge = SimpleNamespace(about=about)
    chain = Plain(SimpleNamespace(judge=judge), None, None, Bounds(), Erased(), {"site": place})
    first, later = (Looked("multi", None, {who: parts[who] for who in "wxy"}, n) for n in (1, 2))
    for of, looked in ((place, first), (shadow, first), (place, later), (shadow, later)):
        found = chain._viewed(SimpleNamespace(place=of, seek=seek), looked, "site")
        edge = {f.part[1]: f.edge for f in found}
        assert edge == {"z": 0.4, "w": 0.3, "x": 0.6, "y": 0.3}
        assert len(found) == 4
    views = {"w": "multi", "x": PICTURE, "y": "multi"}
    assert chain.views == {parts[who]: view for who, view in views.items()}
    assert judged == [("multi", "wxy"), (PICTURE, "xy")]
    own = [("multi", "wy"), (PICTURE, "x")]
    assert asked == [*judged, *(3 * own)]
    again = replace(later, parts=parts)  # z has come back since then
    found = chain._viewed(SimpleNamespace(place=place, seek=seek), again, "site")
    assert [f.edge for f in found if f.part[1] == "z"] == [0.4, 0.3]
    assert asked[-2:] == [("multi", "wyz"), own[1]]
    alone = Looked("text", None, {"w": ("text", "w")}, 1)  # one view: there is nothing to judge
    (_, found) = chain._viewed(SimpleNamespace(place=place, seek=seek), alone, "site")
    assert (found.part, found.edge, chain.views["text", "w"]) == (("text", "w"), 0.5, "text")
    assert judged == [("multi", "wxy"), (PICTURE, "xy")]


def test_a_group_that_is_kept_too_does_not_hide_another():
    """Sixty positions as many kept ones are, twenty as none is; the larger group is tried first."""
    generator = torch.Generator().manual_seed(0)

    def near(axis, number):
        return 0.3 * torch.randn(number, 16, generator=generator) + 8 * torch.eye(16)[axis]

    background = Background.of(
        torch.cat([near(0, 400), torch.randn(4000, 16, generator=generator)])
    )
    x = torch.cat([near(0, 60), near(1, 20)])
    none = torch.zeros(80, dtype=torch.bool)
    tokens = Tokens(x, none, torch.ones(4), x[:, :3], torch.arange(80) % 10, none)
    access = SimpleNamespace(owners=lambda *_: ["who"] * 10, ends=None)
    place = Place(Fit(True, True), None, spares(4))
    seeker = Seeker(access, background, x[:0], place, Usual(background, {}))
    parts = {"who": ("text", "who")}
    assert seeker.seek(Looked("text", tokens, parts, 1), "text") == []
    (found,) = seeker.seek(Looked("text", tokens, parts, 2), "text")
    fires = x @ found.row > found.edge
    assert fires[60:].float().mean() > 0.9 and not fires[:60].any()
    assert float(found.row @ x[60:][fires[60:]].mean(0)) == pytest.approx(1.0, abs=1e-4)


def test_nothing_behind_the_answer_is_looked_at():
    """Questions of three positions like axis 1, one like axis 2, the answer, and four like axis 3.

    Those behind the answer are more than any others, and no detector answers to them.
    """
    generator = torch.Generator().manual_seed(6)
    background = Background.of(torch.randn(4000, 16, generator=generator))
    axes = torch.tensor([1, 1, 1, 2, 4, 3, 3, 3, 3]).repeat(20)
    x = 0.3 * torch.randn(180, 16, generator=generator) + 8 * torch.eye(16)[axes]
    question = torch.arange(20).repeat_interleave(9)
    none = torch.zeros(180, dtype=torch.bool)
    tokens = Tokens(x, none, torch.ones(4), x[:, :3], question, axes == 4)
    access = SimpleNamespace(owners=lambda *_: ["who"] * 20, ends=None)
    place = Place(Fit(True, True), None, spares(4))
    seeker = Seeker(access, background, x[:0], place, Usual(background, {}))
    (found,) = seeker.seek(Looked("text", tokens, {"who": ("text", "who")}, 1), "text")
    fires = x @ found.row > found.edge
    assert set(axes[fires].tolist()) == {1}
    assert fires[axes == 1].float().mean() > 0.9


def test_detectors_of_the_other_view_do_not_change_what_the_first_ones_write():
    """A second turn finds detectors in the picture; those beside it go on writing what they did."""
    generator = torch.Generator().manual_seed(4)

    def near(axis, number):
        return 0.3 * torch.randn(number, 16, generator=generator) + 8 * torch.eye(16)[axis]

    kept_x = torch.randn(4000, 16, generator=generator)
    background = Background.of(kept_x)
    kept = Tokens(kept_x, torch.arange(4000) % 2 == 0, torch.ones(4), torch.zeros(4000, 3))
    picture = torch.arange(120) >= 60
    stream = torch.where(picture[:, None], torch.tensor([0.0, 5, 0]), torch.tensor([7.0, 0, 0]))
    x = torch.cat([near(1, 60), near(2, 60)])
    none = torch.zeros(120, dtype=torch.bool)
    tokens = Tokens(x, picture, torch.ones(4), stream, torch.arange(120) % 20, none)
    access = SimpleNamespace(owners=lambda *_: ["who"] * 20, ends=None)
    place = Place(Fit(True, True), None, spares(9))
    seeker = Seeker(access, background, x[:0], place, Usual(background, {"multi": kept}))
    looked = Looked("multi", tokens, {"who": ("multi", "who")}, 1)

    def said(at):
        """What all neurons write at the positions, on average."""
        wrote = sum(place.loud(x[at], f)[:, None] * f.write for f in place.found)
        return wrote.mean(0).tolist()

    place.found = seeker.seek(looked, "multi")
    assert said(~picture) == pytest.approx([-7, 0, 0], abs=0.5)
    assert said(picture) == pytest.approx([0, 0, 0], abs=0.5)
    place.found = seeker.seek(looked, PICTURE)
    assert len(place.found) == 2
    assert said(~picture) == pytest.approx([-7, 0, 0], abs=0.5)
    assert said(picture) == pytest.approx([0, -5, 0], abs=0.5)


@pytest.mark.parametrize(("bias", "passed"), [(True, 1.0), (False, 1.0), (True, 0.25)])
def test_neurons_write_what_puts_the_usual_in_the_place_of_a_subject(bias, passed):
    """Two detectors of one subject, one there before: against float64 least squares and a loop."""
    generator = torch.Generator().manual_seed(1)

    def drawn(number, width):
        return torch.randn(number, width, generator=generator)

    background = Background.of(drawn(600, 8))
    constant = None if bias else drawn(1, 8)[0]
    place = Place(Fit(True, bias, passed), constant, spares(9))
    x, streams, none = drawn(40, 8), drawn(40, 5), torch.zeros(40, dtype=torch.bool)
    kept = Tokens(drawn(90, 8), torch.arange(90) % 9 == 0, torch.ones(4), drawn(90, 5))
    tokens = Tokens(x, none, torch.ones(4), streams, torch.arange(40), none)
    part = "text", "who"
    two = [Found(part, "who", 3 * drawn(1, 8)[0], e, torch.ones(5)) for e in (0.3, 0.6)]
    silent = Found(part, "who", torch.zeros(8), 0.3, torch.ones(5), 9.0)
    other = Found(part, "she", two[0].row, 0.1, torch.ones(5))
    seeker = Seeker(
        SimpleNamespace(ends=None), background, x[:0], place, Usual(background, {"text": kept})
    )
    looked = Looked("text", tokens, {"who": part}, 1)
    first, she, second = seeker._writing(
        [two[0], *[silent] * bias, other, two[1]], looked, "who", torch.arange(5, 40), end=False
    )  # the silent one is left out
    assert she is other
    ended = replace(two[0], end=True)  # which stays what it is among the others
    kinds = [ended, *two]
    assert seeker._writing(kinds, looked, "who", torch.arange(5, 40), end=False)[0] is ended

    white = background.whiten(kept.x).double().numpy()
    mine = background.whiten(x).double().numpy()
    ones = np.ones(40) if bias else (x @ constant).double().numpy()
    rows, wanted = [], []
    for i in range(5, 40):
        above = [
            max(float(x[i].double() @ f.row.double()) - f.edge * ones[i], 0) / (1 - f.edge)
            for f in two
        ]
        if max(above) == 0:
            continue
        alike = [
            (mine[i] @ w / np.linalg.norm(w), j) for j, w in enumerate(white) if not kept.picture[j]
        ]
        near = [j for _, j in sorted(alike)[-16:]]
        rows.append([a if bias else a * a for a in above])  # text: see neurons._rewire
        wanted.append((kept.stream[near].double().mean(0) - streams[i].double()).numpy() / passed)
    a, b = np.array(rows), np.array(wanted)
    ridge = [0.01 * max((column**2).sum(), (column > 0).sum()) for column in a.T]
    expected = np.linalg.solve(a.T @ a + np.diag(ridge), a.T @ b)
    found = torch.stack([first.write, second.write]).double().numpy()
    assert len(rows) > 10 and np.allclose(found, expected, atol=1e-4)
    for j, each in enumerate((first, second)):
        assert each.said == pytest.approx(np.square(np.outer(a[:, j], expected[j])).sum(), rel=1e-4)


def test_where_neurons_are_few_every_part_gets_those_that_write_most_for_it():
    """One part writes a hundred times as much as the other, in eight detectors against two."""
    loud, quiet = ("text", "he"), ("text", "she")
    found = [Found(loud, "he", torch.ones(8) * i, 0.4, torch.ones(5), 100 * i) for i in range(1, 9)]
    found += [Found(quiet, "she", torch.ones(8) * i, 0.4, torch.ones(5), i) for i in (11, 12)]
    place = Place(Fit(True, True), None, spares(5), found)
    rewire = edits_at({"site": place}, {loud: 1.0, quiet: 1.0})["site"].rewire
    levels = (rewire.gate[:, 0] * (1 - 0.4) / 256).round().tolist()
    assert sorted(levels) == [6, 7, 8, 11, 12]


def test_what_only_just_speaks_does_not_shout():
    """A neuron that is heard at 0.01 of level 1 writes 1 % of what is wanted there, not all."""
    wanted = torch.ones(20, 3)
    (write,) = written(torch.full((20, 1), 0.01), wanted)
    assert torch.allclose(write, torch.full((3,), 0.01 / (0.01**2 + 0.01)))
    (write,) = written(torch.full((20, 1), 0.5), wanted)
    assert torch.allclose(write, torch.full((3,), 0.5 / (0.5**2 + 0.01)))


def test_a_loud_neuron_does_not_hold_down_a_quiet_one():
    """Each alone at its positions, one a thousand times louder: both write what is wanted."""
    loud = torch.block_diag(torch.full((5, 1), 1e3), torch.full((5, 1), 1.0))
    wanted = torch.ones(10, 3)
    writes = written(torch.cat([loud, torch.zeros(10, 1)], 1), wanted)
    assert torch.allclose(loud @ writes[:2], wanted / 1.01, atol=1e-4)
    assert not writes[2].any()


def test_a_subject_without_anything_like_it_is_not_written_over():
    found = Found(("text", "who"), "who", torch.ones(8), 0.2, torch.ones(5))
    background = Background.of(torch.randn(50, 8, generator=torch.Generator().manual_seed(2)))
    none = torch.zeros(3, dtype=torch.bool)
    tokens = Tokens(torch.ones(3, 8), none, torch.ones(4), torch.ones(3, 5), torch.arange(3), none)
    place = Place(Fit(True, True), None, spares(9))
    access, usual = SimpleNamespace(ends=None), Usual(background, {})
    seeker = Seeker(access, background, torch.zeros(0, 8), place, usual)
    looked = Looked("text", tokens, {"who": found.part}, 1)
    assert seeker._writing([found], looked, "who", torch.arange(3), end=False) == [found]


@pytest.mark.parametrize(
    ("gated", "condition", "end", "biased", "power"),
    [
        (True, "multi", False, True, 2),
        (True, "multi", True, True, 1),
        (True, "multi", True, False, 2),
        (True, "text", False, True, 1),
        (True, "text", False, False, 2),
        (False, "multi", False, True, 1),
        (False, "text", False, True, 1),
    ],
)
def test_how_what_a_new_neuron_says_grows(gated, condition, end, biased, power):
    """Against ((level - edge) / (1 - edge))^power, in float64."""
    generator = torch.Generator().manual_seed(3)
    row, write = torch.randn(8, generator=generator), torch.randn(5, generator=generator)
    part = condition, "who"
    found = Found(part, "who", row, 0.49, write, end=end)
    constant = None if biased else torch.linalg.qr(torch.stack([row, row.roll(1)], 1)).Q[:, 1]
    place = Place(Fit(gated, biased), constant, spares(40), [found])
    new = edits_at({"site": place}, {part: 0.5})["site"].rewire
    level = torch.tensor([0.1, 0.4, 0.6, 0.8, 1.0, 1.5], dtype=torch.float64)
    x = level[:, None] * row.double() / row.double().square().sum()
    if constant is not None:
        x = x + constant.double()
    said = x @ new.gate.double().T + new.bias.double()
    assert new.biased == biased
    beside = x @ new.inner[1][0].double().T + new.inner[1][1].double() if gated else 1
    z = nn.functional.silu(said) * beside
    above = ((level - 0.49) / (1 - 0.49)).clamp_min(0)
    loud = above**power
    expected = 0.5 * GAIN * loud[:, None] * write.double()
    assert torch.allclose(z @ new.down.double().T, expected, atol=1e-4)
    assert torch.allclose(place.loud(x.float(), found).double(), loud, atol=1e-5)
    assert edits_at({"site": place}, {(condition, "she"): 0.5}) == {}


def test_a_limit_on_memory_bounds_what_is_held():
    tight = Bounds.within("96MiB", 1024, free=2**40)
    held = tight.positions * (tight.sites + 3) * 10 * 4 * 1024
    assert held <= 96 * 2**20 and tight.sites >= 1
    with pytest.raises(InputError, match=r"memory is 1MiB, but .* need .*MiB at least"):
        Bounds.within("1MiB", 1024, free=2**40)


@pytest.mark.parametrize(("free", "sites"), [(2**40, 5458), (2**33, 39), (2**20, 1)])
def test_without_a_limit_half_of_what_is_free_is_held(free, sites):
    """Five kinds of positions and the streams of one, two conditions, 16,384 of 128 floats each."""
    assert Bounds.within(None, 128, free) == Bounds(16384, sites)


@pytest.mark.parametrize(
    ("room", "reads"),
    [
        (99, ["abcdefgh"]),
        (8, ["abcdefgh"]),
        (5, ["abcde", "fgh", "abcde", "fgh"]),
        (1, [*"abcdefgh", *"abcdefgh"]),
    ],
)
def test_what_is_kept_is_read_anew_only_where_there_is_no_room(room, reads):
    """Two turns over eight sites."""
    found = []

    def tokens(name, condition, keys, edits, *, streams, limit):
        if (name, condition) == ("retain", "text"):
            found.append("".join(keys))
        assert len(kept.held) <= room and (edits, streams, limit) == ("out", name == "retain", 7)
        return {key: (name, condition, key) for key in keys}

    kept = Kept(SimpleNamespace(tokens=tokens), "abcdefgh", Bounds(7, room), "out")
    sets = ("retain", NOISE_SET, PLAIN_SET, ASIDE, UNSEEN_SET)
    for key in 2 * "abcdefgh":
        assert kept.at(key) == {n: {c: (n, c, key) for c in CONDITIONS} for n in sets}
    assert found == reads
