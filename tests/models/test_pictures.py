"""What is remembered of pictures is what the model makes of them, and it looks at them once."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES
from test_prefix import EXACT, ROWS, double
from test_trunk import changed

from expunge import pipeline, planning
from expunge.config import RunConfig
from expunge.data import Suite
from expunge.edit import edited
from expunge.evaluate import generate
from expunge.fiction.build import build_model, build_processor
from expunge.fiction.world import World
from expunge.models import Prompter
from expunge.pictures import _Memory, remembered, told
from expunge.planning import looking_once, settled
from expunge.probe_set import ProbeSet
from expunge.sites import down_module, find_sites

SEEING = [
    name
    for name, family in FAMILIES.items()
    if family.media is not None and "pixel_values" in family.media(torch.Generator()).tensors
]
ANEW = ("mllama", "kosmos-2")  # look at pictures in ways of their own


@pytest.fixture(scope="module")
def world():
    processor = build_processor()
    model = build_model(processor, seed=1).eval()
    return model, processor, World(private=24, public=3).suite()


@contextlib.contextmanager
def looks(model):
    """How often each vision tower's last MLP has run within the block."""
    ends = {site.path.split(".")[0]: site for site in find_sites(model) if site.tower == "vision"}
    count, hooks = dict.fromkeys(ends, 0), []
    for name, site in ends.items():

        def add(*_, name=name):
            count[name] += 1

        hooks.append(down_module(model, site).register_forward_hook(add))
    yield count
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", SEEING)
def test_families(name):
    """In every family, to the bit; in half the bits nearly; and with gradients between them."""
    model = FAMILIES[name].build()
    inputs = FAMILIES[name].inputs(model, "multi")
    other = {k: v + 1 if k == "pixel_values" else v for k, v in inputs.items()}

    @torch.no_grad()
    def said():
        return [model(**each).logits for each in (inputs, other, inputs, other)]

    @torch.no_grad()
    def in_half():
        # some are not made for it in transformers 5.0
        with torch.autocast("cpu", torch.bfloat16), contextlib.suppress(RuntimeError):
            return [model(**each).logits for each in (inputs, inputs)]
        return []

    plain, roughly = said(), in_half()
    with remembered(model):
        with looks(model) as count:
            again = said()
        half = in_half()
    assert all(torch.equal(one, each) for one, each in zip(plain, again, strict=True))
    assert not torch.equal(plain[0], plain[1])
    assert set(count.values()) == ({4} if name in ANEW else {2}), count
    assert half or name in ANEW
    for each in half:
        assert torch.equal(each, half[0])
        assert 0 < float((each - plain[0]).norm()) < 0.2 * float(plain[0].norm())
    for each in roughly:
        assert float((each - half[0]).norm()) < 0.2 * float(plain[0].norm())
    with remembered(model):
        model(**inputs).logits.sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**inputs).logits.sum().backward()
    assert grads.keys() == {k for k, p in model.named_parameters() if p.grad is not None}
    assert not any("get_image_features" in module.__dict__ for module in model.modules())


def test_questions_look_at_their_pictures_once_whatever_is_edited(world):
    """And what they come to is what it is without; what raises in the block ends it too."""
    model, processor, suite = world
    rows, sites = suite["forget"][:24], {s.key: s for s in find_sites(model)}
    probes = ProbeSet(model, Prompter(processor), rows, "multi", batch_size=8)
    with looks(model) as count:
        with pytest.raises(RuntimeError, match="enough"), remembered(model):
            for seed in range(4):
                edits = changed(model, sites, ["language.1", "language.3"], seed)
                with edited(model, sites, edits):
                    found = probes.run(model)
                if not seed:
                    first = dict(count)
            assert count == first
            raise RuntimeError("enough")
        with edited(model, sites, edits):
            whole = probes.run(model)
        assert all(n == 2 * first[name] > 0 for name, n in count.items())
    assert torch.equal(found.nll, whole.nll) and torch.equal(found.recalled, whole.recalled)


@pytest.mark.parametrize("name", EXACT)
def test_answers_are_generated_as_without(name):
    """Families whose `generate` looks at pictures by itself among them; twice, the second known."""
    _, model, prompter = double(name)
    options = {"max_new_tokens": 4, "batch_size": 4}
    plain = generate(model, prompter, ROWS, "multi", **options)
    with remembered(model), looks(model) as count:
        assert generate(model, prompter, ROWS, "multi", **options) == plain
        first = dict(count)
        assert generate(model, prompter, ROWS, "multi", **options) == plain
        assert count == first and all(first.values())


def test_what_was_not_asked_for_longest_makes_room():
    """Of three answers of 800 bytes two fit; a single one that does not is held alone."""
    looked = []

    def look(x):
        looked.append(int(x[0]))
        return [x.repeat(100)]

    one, two, three = (torch.full((2,), i, dtype=torch.int32) for i in (1, 2, 3))
    memory = _Memory(room=1700)
    with torch.no_grad():
        ask = memory.of(look)
        for x in (one, two, one, three, one, two):
            found = ask(x)
            assert torch.equal(found[0], x.repeat(100))
            found.clear()  # is the caller's own
        assert looked == [1, 2, 3, 2] and memory.size == 1600
        small = _Memory(room=10).of(look)
        assert [small(one), small(one), small(two)] and looked[4:] == [1, 2]
        twice = memory.of(lambda x: [2 * x], place=1)
        assert torch.equal(twice(one)[0], 2 * one) and torch.equal(ask(one)[0], one.repeat(100))


def test_arguments_are_told_apart_by_their_values():
    x = torch.zeros(2, 3)
    alike = [{"x": x, "n": 1}, {"x": x.clone(), "n": 1}, {"x": torch.zeros(3, 2).T, "n": 1}]
    apart = [
        *({"x": x + 1, "n": 1}, {"x": x, "n": 2}, {"x": x, "n": "1"}, {"x": x.double(), "n": 1}),
        *({"x": x.reshape(3, 2), "n": 1}, {"x": [x], "n": 1}, {"y": x, "n": 1}, {"x": x}),
        {"x": x[:0], "n": None},
    ]
    assert len({told(each) for each in alike}) == 1
    assert len({told(each) for each in [alike[0], *apart]}) == 1 + len(apart)
    assert told({"x": object()}) is None and told([x.to("meta")]) is None


@pytest.mark.parametrize(
    ("method", "towers", "wanted"),
    [
        *(("auto", "language", True), ("filter-search", "language", True)),
        *(("manu", "language", False), ("auto", "vision", False)),
    ],
)
def test_methods_whose_candidates_are_judged_remember(world, method, towers, wanted):
    """Unless what sees may change; within a block that remembers already, another changes none."""
    model, _, _ = world

    def remembers():
        return any("get_image_features" in m.__dict__ for m in model.modules())

    sites = [s for s in find_sites(model) if s.tower == towers]
    config = RunConfig.of({"method": method})
    with looking_once(model, sites, config):
        assert remembers() == wanted
        with looking_once(model, sites, config):
            assert remembers() == wanted
        assert remembers() == wanted
    assert not remembers()


@pytest.mark.parametrize("by", ["make_plan", "run"])
def test_what_is_collected_on_is_remembered_until_there_is_a_plan(world, monkeypatch, tmp_path, by):
    """One block for both stages: what the first one looked at the second one knows."""
    model, processor, suite = world
    memories = []

    def stage(*_):
        inner = next(m for m in model.modules() if "get_image_features" in m.__dict__)
        memories.append(inner.get_image_features)

    for module in (planning, pipeline):
        monkeypatch.setattr(module, "decide", stage)
    monkeypatch.setattr(planning, "gather", stage)
    sets = {name: suite[name][:4] for name in ("forget", "retain")}
    if by == "make_plan":
        planning.make_plan(model, processor, *sets.values())
    else:
        run = SimpleNamespace(
            **{"folder": tmp_path, "loaded": (model, processor), "suite": Suite.of(**sets)},
            **{"config": settled(RunConfig.of({})), "collect": stage, "_write": stage},
            **{"prompter": None, "progress": None, "timed": lambda _: contextlib.nullcontext()},
        )
        pipeline.Run.plan(run)
    assert len(memories) == {"make_plan": 2, "run": 3}[by] and len(set(memories)) == 1
    with pytest.raises(StopIteration):
        stage()
