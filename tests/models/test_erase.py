"""What the default method takes out before it looks for detectors, on the embedded world."""

from dataclasses import replace

import pytest
import torch
from test_gated import little_noise

from expunge import methods
from expunge.collect import Counting, collect_statistics
from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.edit import edited, fingerprint
from expunge.evaluate import Answers
from expunge.evidence import gather
from expunge.fiction.shipped import checkpoint, suite
from expunge.methods import base
from expunge.methods.base import ASIDE, NOISE_SET, OWN_SET, PLAIN_SET, SAID_SET
from expunge.methods.erase import ENERGY, LEVELS, Erased, allowed, erase
from expunge.methods.filter_search import RIDGE, VIEWS, edits_at, scales_of, views_of
from expunge.methods.filters import moment
from expunge.models import Prompter, load
from expunge.planning import chosen_sites, make_plan, settled
from expunge.prefix import begun
from expunge.probe_set import ProbeSet
from expunge.subspace import conditioned


@pytest.fixture(scope="module")
def world():
    return load(checkpoint("vanilla"))


@pytest.fixture(scope="module")
def evidence(world):
    sets = suite(5, 2).sets
    sets = {"forget": sets["forget"][::2], "retain": sets["retain"][::4]}
    config = settled(RunConfig.of({"method": "auto"}))
    model, processor = world
    sites = chosen_sites(model, config)
    return gather(model, Prompter(processor), sets, sites, config, methods.get("auto"))


@pytest.fixture(scope="module")
def erased(evidence):
    return erase(evidence)


def test_ordinary_text_counts_among_what_is_kept_at_all_its_positions(world, evidence):
    """Read with no conversation around it, and half as much as retain; retain at its answers."""
    model, processor = world
    prompter, sets, sites = Prompter(processor), evidence.access.sets, evidence.sites[-1:]
    key = sites[0].key

    def mean(prompter, name, condition, positions):
        found = collect_statistics(
            model, prompter, sets[name], condition, sites=sites, neurons=False, moments=True,
            counting=Counting(positions),
        )  # fmt: skip
        return found.moments[key]

    texts = mean(prompter.plain, PLAIN_SET, "text", "all")
    assert texts.count > 1000
    held = evidence.moments[PLAIN_SET, "text"][key]
    assert held.count == texts.count and torch.allclose(held.mean, texts.mean, rtol=1e-4)
    for condition in CONDITIONS:
        answers = mean(prompter, "retain", condition, "answer")
        held = evidence.moments["retain", condition][key]
        assert held.count == answers.count and torch.allclose(held.mean, answers.mean, rtol=1e-4)
    (final,) = views_of(evidence, [evidence.kept])
    noise = moment(evidence, (NOISE_SET,), key)
    kept = moment(evidence, evidence.kept, key, VIEWS)
    base = conditioned(kept + 0.5 * noise + 0.5 * texts.mean, RIDGE)
    read = final[key].space.read
    assert torch.allclose(read @ base @ read.T, torch.eye(len(read)).double(), atol=5e-3)


def test_what_is_judged_is_what_a_plan_holds(erased):
    edits = [e for es in (erased.edits, erased.shadow) for e in es.values()]
    assert edits and all(all(map(torch.equal, e.lowrank, e.gridded().lowrank)) for e in edits)


def test_it_rises_with_the_depth_and_to_where_it_starts_to_cost(erased):
    levels = list(erased.notes["levels"].values())
    assert levels == sorted(levels) and set(levels) <= {0.0, *LEVELS} and max(levels) > 0
    before = erased.notes["start"]
    most = {c: before[c] + 0.03 for c in CONDITIONS}
    most |= {SAID_SET: before[SAID_SET] * 1.003, OWN_SET: before[OWN_SET] + 0.2}
    assert allowed(before) == pytest.approx(most)
    free = {
        (t["level"], t["from"]): all(nll <= most[n] for n, nll in t["cost"].items())
        for t in erased.notes["tried"]
    }
    keys, end = list(erased.notes["levels"]), len(levels)
    for level in reversed(LEVELS):
        begin = sum(found < level for found in levels)
        if begin < end:
            assert free[level, keys[begin]]
        if begin and (level, keys[begin - 1]) in free:
            assert not free[level, keys[begin - 1]]
        end = begin


def test_the_cost_is_what_questions_and_texts_it_never_saw_lose(world, evidence, erased):
    """Against teacher forcing of those questions outside the judge; of texts, what was likely."""
    model, processor = world
    before = fingerprint(model)
    cost = evidence.judge.cost(erased.shadow)
    assert fingerprint(model) == before
    sets = evidence.access.sets
    sites = {s.key: s for s in evidence.sites}
    assert len(sets[ASIDE]) <= 180  # so that the judge asks all of them
    said = ProbeSet(model, Prompter(processor).plain, sets[SAID_SET], "text")
    before = spoken(model, said)
    entropy = -sum(float((p.exp() * p).sum()) for p, _ in before)
    nll = -sum(float(p.gather(1, t).sum()) for p, t in before)
    share = entropy / nll
    assert 0 < share < 1
    with edited(model, sites, erased.shadow):
        for condition in CONDITIONS:
            probes = ProbeSet(model, Prompter(processor), sets[ASIDE], condition)
            assert cost[condition] == pytest.approx(probes.run(model).mean_nll, abs=1e-4)
        both = [
            -share * (share * (p.exp() * q).sum(-1).mean() + (1 - share) * q.gather(1, t).mean())
            for (p, t), (q, _) in zip(before, spoken(model, said), strict=True)
        ]
        # tokens that are hardly likely count as one in the judge
        assert cost[SAID_SET] == pytest.approx(float(sum(both)) / said.size, rel=1e-3)
        own = [
            ProbeSet(model, Prompter(processor), sets[OWN_SET], c).run(model).mean_nll
            for c in CONDITIONS
        ]
        assert cost[OWN_SET] == pytest.approx(max(own), abs=1e-4)
    assert not {id(e) for e in sets[SAID_SET]} & {id(e) for e in sets[NOISE_SET]}


def spoken(model, probes):
    """By text, log-probabilities [answer tokens, vocabulary], float64, and the tokens there."""
    found = []
    with torch.inference_mode():
        for each in probes.batches:
            answers = Answers.of(model, begun(model, each))
            for i in range(answers.size):
                mine = answers.row == i
                found.append((answers.logp[mine].double(), answers.target[mine][:, None]))
    return found


def test_answers_about_almost_nothing_are_the_models_own(world, evidence):
    """Every token of them is the greedy one, and no such question stands among the noise."""
    model, processor = world
    sets = evidence.access.sets
    for condition in CONDITIONS:
        probes = ProbeSet(model, Prompter(processor), sets[OWN_SET], condition)
        assert probes.size > 100 and probes.run(model).accuracy > 0.95
    asked = {e.text_question for e in sets[NOISE_SET]}
    assert sum(e.text_question in asked for e in sets[OWN_SET]) < 0.02 * len(sets[OWN_SET])


def test_at_each_site_it_is_the_filter(evidence, erased):
    """The same edits as `filter-search` makes of the same statistics at that strength."""
    names = evidence.kept
    assert set(names) == {"retain", ASIDE}
    (final,) = views_of(evidence, [names])
    scales = scales_of(final)
    for key, level in erased.notes["levels"].items():
        if not level:
            assert key not in erased.edits
            continue
        same = {(c, ""): level for c in scales}
        theirs = edits_at(evidence, {key: final[key]}, scales, same, ENERGY)[key].gridded()
        for factor, ours in zip(theirs.lowrank, erased.edits[key].lowrank, strict=True):
            assert torch.equal(factor, ours)


def test_sites_that_get_no_neurons_are_run_only_if_asked_for(world, monkeypatch):
    monkeypatch.setattr(base, "SITES", 2)
    sets = suite(5, 2).sets
    few = {"forget": sets["forget"][::12], "retain": sets["retain"][::24]}
    config = settled(RunConfig.of({"method": "auto"}))
    sites = chosen_sites(world[0], config)
    with little_noise(8):
        found = gather(
            world[0], Prompter(world[1]), few, sites, config, methods.get("auto")
        )  # fmt: skip
        assert [[s.key for s in group] for group in found.moments.ran] == [
            [sites[0].key, sites[-1].key]
        ]
        assert list(erase(found).notes["levels"]) == [sites[0].key, sites[-1].key]
        assert len(found.moments.ran) == 1
        other = found.moments["forget", "text"][sites[1].key]
    assert other.count == found.moments["forget", "text"][sites[2].key].count > 0
    assert [s.key for s in found.moments.ran[1]] == [s.key for s in sites[1:-1]]


def test_where_second_moments_do_not_fit_nothing_is_taken_out(world):
    sets = suite(5, 2).sets
    mine = [e for e in sets["forget"] if e.subject == sets["forget"][0].subject][::3]
    with little_noise():
        plan = make_plan(*world, mine, sets["retain"][::24], strength=1.0, memory="64MiB")
    assert "do not fit" in plan.provenance["notes"]["erased"]["left out"]
    for edit in plan.edits.values():  # nothing but neurons given up and what makes up for them
        assert edit.lowrank[1].shape[0] <= len(edit.rewire.index) > 0
        assert not edit.lowrank[1][:, edit.rewire.index].any()


def test_no_statistics_no_edits(evidence):
    found = erase(replace(evidence, moments={}))
    assert found.edits == found.shadow == Erased().edits == {}
