"""What enters an MLP, position by position, against a loop over questions one by one."""

from dataclasses import replace

import pytest
import torch

from expunge import tokens
from expunge.bench import Bench
from expunge.config import RunConfig
from expunge.data import Example
from expunge.encoding import batches
from expunge.fiction.build import build_model, build_processor
from expunge.fiction.world import World
from expunge.methods.base import PLAIN_SET, Tokens
from expunge.models import Prompter
from expunge.planning import settled
from expunge.sites import Site, find_sites, layer_of


@pytest.fixture(scope="module")
def bench():
    processor = build_processor()
    model = build_model(processor, seed=1).eval()
    sites = [s for s in find_sites(model) if s.tower == "language"]
    told = [
        Example(subject="said", answer="moon", text_question=words)
        for words in ("the sun and the", "a", "who is the king of the")
    ]
    sets = {"forget": World(private=24, public=3).suite()["forget"][:5], PLAIN_SET: told}
    config = settled(RunConfig(method="auto", batch_size=2))
    return Bench(model, Prompter(processor), sets, sites, config)


def slow(bench, prompter, rows, condition, site):
    """(x, z) in float64 at every position, question by question."""
    block, seen = bench.model.get_submodule(site.path.rpartition(".")[0]), []
    hooks = [
        block.register_forward_pre_hook(lambda m, given: seen.append(given[0][0].double())),
        block.down_proj.register_forward_pre_hook(
            lambda m, given: seen.append(given[0][0].double())
        ),
    ]
    with torch.inference_mode():
        for row in rows:
            (batch,) = batches(bench.model, prompter, [row], condition)
            bench.model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    return torch.cat(seen[::2]), torch.cat(seen[1::2])


def in_order(x):
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_questions_apart_are_all_positions(bench, condition):
    site = bench.sites[1]
    found = bench.tokens("forget", condition, [site.key], apart=True)[site.key]
    x, z = slow(bench, bench.prompter, bench.sets["forget"], condition, site)
    torch.testing.assert_close(in_order(found.x.double()), in_order(x), rtol=1e-4, atol=1e-5)
    rms = torch.stack([row.square() for row in z]).mean(0).sqrt()
    torch.testing.assert_close(found.used.double(), rms, rtol=1e-4, atol=1e-6)
    assert found.question.unique().tolist() == list(range(5))
    assert bool(found.picture.any()) == (condition == "multi")


@pytest.mark.parametrize("condition", ["multi", "text"])
def test_what_is_asked_and_where_it_ends(bench, condition):
    """By a loop over questions one by one; what they share is run once for the ends."""
    key = bench.sites[1].key
    found = bench.tokens("forget", condition, [key], apart=True, streams=True)[key]
    ends = bench.tokens("forget", condition, [key], ends=True, streams=True)[key]
    assert sorted(ends.question.tolist()) == list(range(5))
    assert bool(ends.asked.all()) and not bool(ends.picture.any())
    for place, row in enumerate(bench.sets["forget"]):
        (batch,) = batches(bench.model, bench.prompter, [row], condition)
        told = batch.answer[0].tolist()
        begins = told.index(True)
        assert any(told) and not told[-1]  # the last closes the answer and is not asked
        mine = torch.nonzero(found.question == place)[:, 0]
        assert found.asked[mine].tolist() == [i < begins for i in range(len(told))]
        for name in ("x", "stream"):
            one, of_all = (getattr(each, name) for each in (ends, found))
            alone = one[ends.question == place][0]
            torch.testing.assert_close(alone, of_all[mine[begins - 1]], rtol=1e-4, atol=1e-5)


def test_all_of_a_question_without_an_answer_is_asked():
    none = torch.zeros(5, dtype=torch.bool)
    question = torch.tensor([3, 3, 0, 0, 0])
    found = Tokens(torch.ones(5, 2), none, torch.ones(2), question=question, answer=none)
    assert found.asked.all()


@pytest.mark.parametrize("streams", [True, False])
def test_positions_of_the_first_questions_are_those_read_of_them_alone(bench, streams):
    key = bench.sites[1].key
    found = bench.tokens("forget", "text", [key], apart=True, streams=streams)[key]
    few = replace(bench, sets={"forget": bench.sets["forget"][:2]})
    alone = few.tokens("forget", "text", [key], apart=True, streams=streams)[key]
    first = found.of_first(2)
    for name in ("question", "answer", "picture", "asked", *["stream"] * streams):
        one, other = (getattr(each, name) for each in (first, alone))
        for place in range(2):
            mine, theirs = (each.question == place for each in (first, alone))
            torch.testing.assert_close(one[mine], other[theirs], rtol=1e-4, atol=1e-5)
    assert len(first.x) == len(alone.x) < len(found.x)
    assert (first.stream is None) is not streams


@pytest.mark.parametrize("apart", [True, False])
def test_what_a_layer_passes_on_is_kept_where_asked_for(bench, apart):
    """Against the hidden states of transformers, question by question."""
    site = bench.sites[1]  # after the second layer
    rows = bench.sets["forget"]
    found = bench.tokens("forget", "text", [site.key], apart=apart, streams=True)[site.key]
    states = []
    with torch.inference_mode():
        for row in rows:
            (batch,) = batches(bench.model, bench.prompter, [row], "text")
            out = bench.model(**batch.inputs, output_hidden_states=True)
            states.append(out.hidden_states[2][0])
    expected = torch.cat(states)
    torch.testing.assert_close(in_order(found.stream), in_order(expected), rtol=1e-4, atol=1e-5)
    assert bench.tokens("forget", "text", [site.key], apart=apart)[site.key].stream is None


def test_a_site_in_no_layer_passes_on_what_it_puts_out(bench, monkeypatch):
    site = bench.sites[0]
    monkeypatch.setattr(tokens, "layer_of", lambda _: None)
    found = bench.tokens("forget", "text", [site.key], apart=True, streams=True)[site.key]
    block = bench.model.get_submodule(site.path.rpartition(".")[0])
    with torch.inference_mode():
        torch.testing.assert_close(found.stream, block(found.x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("model.language_model.layers.3.mlp.down_proj", "model.language_model.layers.3"),
        ("model.multi_modal_projector.linear_2", None),
        ("transformer.h.11.mlp.c_proj", "transformer.h.11"),
        ("fc2", None),
    ],
)
def test_the_layer_around_a_site(path, layer):
    assert layer_of(Site("a.0", "a", "mlp", path, 8, 64, False)) == layer


def test_plain_texts_are_read_with_nothing_around_them(bench):
    site = bench.sites[1]
    found = bench.tokens(PLAIN_SET, "text", [site.key])[site.key]
    x, z = slow(bench, bench.prompter.plain, bench.sets[PLAIN_SET], "text", site)
    torch.testing.assert_close(in_order(found.x.double()), in_order(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.used.double(), z.square().mean(0).sqrt(), rtol=1e-4, atol=1e-6)
    words = sum(
        len(bench.prompter.tokenizer(f"{e.text_question} {e.answer}<end>").input_ids)
        for e in bench.sets[PLAIN_SET]
    )
    assert len(found.x) == words
    assert bench.tokens(PLAIN_SET, "multi", [site.key]) == {}


def test_at_most_so_many_positions_are_kept(bench):
    site = bench.sites[0]
    whole, some = (
        bench.tokens("forget", "text", [site.key], limit=limit)[site.key] for limit in (None, 20)
    )
    assert len(some.x) == 20 < len(whole.x)
    assert torch.equal(some.used, whole.used)
    assert all(bool((whole.x == row).all(1).any()) for row in some.x)


def test_which_sites_are_read_together_does_not_matter(bench):
    keys = [s.key for s in bench.sites]
    assert len(keys) > 1
    together = bench.tokens("forget", "text", keys, limit=20, streams=True)
    for key in keys:
        alone = bench.tokens("forget", "text", [key], limit=20, streams=True)[key]
        for name in ("x", "picture", "used", "stream"):
            assert torch.equal(getattr(alone, name), getattr(together[key], name))


@pytest.mark.parametrize("apart", [True, False])
def test_what_is_behind_the_last_site_asked_for_is_not_run(bench, monkeypatch, apart):
    """Unless weights are moved about as the pass goes."""
    site, behind, ran = bench.sites[0], layer_of(bench.sites[-1]), []
    assert bench.fit(site.key)  # for which the model is run once
    hook = bench.model.get_submodule(behind).register_forward_hook(lambda *_: ran.append(1))
    rows = [e for e in bench.sets["forget"] if e.has("text")]
    monkeypatch.setitem(bench.sets, "forget", rows[:1] if not apart else rows)  # nothing shared
    brief = bench.tokens("forget", "text", [site.key], apart=apart, streams=True)[site.key]
    assert not ran
    monkeypatch.setattr(bench.model, "hf_device_map", {"": "cpu"}, raising=False)
    whole = bench.tokens("forget", "text", [site.key], apart=apart, streams=True)[site.key]
    hook.remove()
    assert ran
    for name in ("x", "stream", "used"):
        assert torch.equal(getattr(brief, name), getattr(whole, name))
