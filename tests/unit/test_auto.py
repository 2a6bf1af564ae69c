"""Searches of strengths on known curves, folds, and what the default method does to the world."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from expunge import precision
from expunge.data import CONDITIONS, Example
from expunge.edit import edited
from expunge.evaluate import teacher_forced
from expunge.evidence import folded
from expunge.fiction.shipped import checkpoint, suite
from expunge.judge import (
    Asked,
    Judge,
    Left,
    _verdict,
    drawn,
    grouped,
    guess_rate,
    with_other_answers,
)
from expunge.methods import search
from expunge.methods.base import OWN_SET, Verdict
from expunge.methods.chain import best_of
from expunge.methods.filter_search import PACE, scales_of
from expunge.models import Prompter, load
from expunge.plan import SiteEdit
from expunge.probe_set import Forcing, ProbeSet
from expunge.sites import find_sites
from expunge.subspace import views


def verdict(nll, other, kept):
    """A verdict with one figure for both conditions, or one for each."""

    def each(value):
        return value if isinstance(value, dict) else dict.fromkeys(CONDITIONS, value)

    return Verdict(each(0.5), each(nll), each(other), each(kept), each(0.0))


def searched(judge, keep=0.97, pace=PACE):
    """The strengths chosen by condition, and the steps; one group of subjects."""
    steps = []
    chosen = search.search(
        lambda s: judge(search.by_condition(s)), verdict(0.0, 6.0, 1.0), keep, steps, pace
    )
    return search.by_condition(chosen), steps


TOLERANCE = search.FACTOR ** (1 / 2**PACE.halvings) + 1e-9


def test_search_stops_at_the_weakest_strength_that_forgets():
    chosen, steps = searched(
        lambda s: verdict(4.0 if s["multi"] >= 1.3 else 1.0, 3.0, 1 - s["multi"] / 1000)
    )
    assert set(chosen) == set(CONDITIONS) and chosen["multi"] == chosen["text"]
    assert 1.3 <= chosen["multi"] <= 1.3 * TOLERANCE
    assert len(steps) <= PACE.rises + PACE.halvings


def test_of_candidates_that_forget_the_weakest_is_taken_even_if_none_loses_anything():
    chosen, steps = searched(lambda s: verdict(4.0 if s["text"] >= 1.3 else 1.0, 3.0, 1.0))
    forgetting = [s.strengths["text", ""] for s in steps if s.forgotten]
    assert len(forgetting) > 1 and chosen["text"] == min(forgetting)


def test_search_stays_inside_the_limit_when_that_comes_first():
    chosen, steps = searched(
        lambda s: verdict(s["multi"], 30.0, 0.99 if s["multi"] <= 2.9 else 0.9)
    )
    assert chosen["multi"] <= 2.9 < chosen["multi"] * TOLERANCE
    assert all(s.kept >= 0.97 for s in steps if s.strengths["multi", ""] <= chosen["multi"])


def test_search_goes_below_the_first_strength_when_that_harms_too_much():
    limit = PACE.first / 5
    chosen, _ = searched(lambda s: verdict(s["multi"], 30.0, 1.0 if s["multi"] <= limit else 0.5))
    assert 0 < chosen["multi"] <= limit


def test_search_gives_up_when_even_the_weakest_harms_too_much():
    chosen, steps = searched(lambda s: verdict(1.0, 3.0, 0.5))
    assert chosen == dict.fromkeys(CONDITIONS, 0.0)
    assert len(steps) == 1 + PACE.halvings


def test_search_takes_the_last_rise_when_hardly_anything_happens():
    chosen, steps = searched(lambda s: verdict(0.01 * s["multi"], 3.0, 1.0))
    assert chosen["multi"] == pytest.approx(PACE.first * search.FACTOR ** (PACE.rises - 1))
    assert len(steps) == PACE.rises


def test_a_condition_that_is_ahead_waits_for_the_other():
    """Text is forgotten eight times as easily: the strengths end up that far apart."""

    def judge(s):
        return verdict({"multi": 0.4 * s["multi"], "text": 3.2 * s["text"]}, 3.0, 1.0)

    chosen, steps = searched(judge)
    shares = search.progress(judge(chosen))
    assert chosen["multi"] > 3 * chosen["text"]
    assert min(shares.values()) == 1.0
    for before, after in itertools.pairwise(steps[: PACE.rises]):
        done = search.by_condition(search.progress(before.verdict))
        if done["text"] > done["multi"] + search.BEHIND:
            assert after.strengths["text", ""] <= before.strengths["text", ""]


def test_of_candidates_that_do_not_forget_the_most_even_one_is_taken():
    def judge(s):
        return verdict({"multi": s["multi"], "text": 1.0}, 10.0, 1.0 if s["multi"] < 5 else 0.5)

    chosen, steps = searched(judge)
    inside = [s for s in steps if s.kept >= 0.97]
    least = {tuple(s.strengths.values()): min(search.progress(s.verdict).values()) for s in inside}
    assert least[tuple(chosen.values())] == max(least.values())


def test_every_group_of_subjects_has_a_strength_of_its_own():
    """Two groups, one forgotten four times as easily; nobody waits."""
    needed = {("text", "easy"): 1.0, ("text", "hard"): 4.0}

    def judge(s):
        apart = {
            group: Verdict(
                {"text": 0.0 if s[part] >= needed[part] else 1.0},
                {},
                {},
                {},
                {},
                {"text": 0.0},
                asked={"text": 18},
            )
            for part in needed
            for group in [part[1]]
        }
        return replace(verdict(1.0, 1.0, 1.0), apart=apart)

    pace = search.Pace(0.25, 6, 0, search.of_groups, behind=1.0)
    start = judge(dict.fromkeys(needed, 0.0))
    steps = []
    chosen = search.search(judge, start, 0.97, steps, pace)
    assert chosen == needed and [s.forgotten for s in steps] == [False] * 4 + [True]


def test_the_search_tells_every_limit_it_was_held_to():
    start = verdict(0.1, 4.0, 1.0)
    words = search.told(start, [], {}, 0.97)["explanation"]
    assert "keep 97% of their accuracy; if" in words and "by itself" not in words
    words = search.told(replace(start, said=[1.0]), [], {}, 0.97)["explanation"]
    assert "texts that the model said by itself 99.7% of their probability a token" in words


def test_chance_is_allowed_for_only_where_the_condition_is_forgotten_as_a_whole():
    """Four subjects of 18 questions, of which chance explains three right, but not of each."""

    def now(*right):
        def seen(share, number):
            return Verdict(
                {"text": share}, {}, {}, {}, {}, {"text": 0.4}, {"text": 0.0}, {}, {"text": number}
            )

        apart = {str(i): seen(r / 18, 18) for i, r in enumerate(right)}
        return replace(seen(sum(right) / (18 * len(right)), 18 * len(right)), apart=apart)

    one = search.of_groups(now(0, 0, 0, 1))
    assert one == {("text", str(i)): 1.0 for i in range(4)}
    each = search.of_groups(now(1, 1, 1, 1))
    assert each == {("text", str(i)): pytest.approx((17 / 18) / 0.98) for i in range(4)}


def test_subjects_of_whom_little_is_asked_are_judged_together():
    def asked(subject, number, **form):
        return [Example(subject=subject, answer="a", **form)] * number

    rows = asked("one", 6, text_question="q") + asked("two", 5, text_question="q")
    assert grouped(["one", "two", "none"], rows) == {"one": "one", "two": "", "none": ""}
    rows += asked("one", 2, question="q", image="x.png")
    assert grouped(["one"], rows) == {"one": ""}


def test_nothing_is_known_where_a_standard_error_hides_the_rest():
    """0.15 recalled (strangers' answers: 0.1), likelier in three pairs of five."""
    found = Verdict({"text": 0.15}, {}, {}, {}, {}, {"text": 0.6}, {"text": 0.1})
    assert search.unknown(found)["text"] == pytest.approx(0.4 / 0.435)  # no number, no error
    many = search.unknown(replace(found, asked={"text": 10_000}))["text"]
    assert many == pytest.approx(0.4 / (0.435 - 0.003))
    assert search.unknown(replace(found, asked={"text": 9})) == {"text": 1.0}
    few = replace(found, asked={"text": 2})  # so few hide no more than a fifth
    assert search.unknown(few)["text"] == 1.0
    assert search.unknown(replace(few, likelier={"text": 0.75}))["text"] == pytest.approx(
        0.25 / 0.3
    )
    assert search.unknown(replace(few, recalled={"text": 0.5}))["text"] == pytest.approx(0.5 / 0.7)
    share = (72 * 0.1 + 1) / 74
    error = math.sqrt(2 * share * (1 - share) / 72)
    found = replace(found, recalled={"text": 0.3}, likelier={"text": 0.5}, asked={"text": 72})
    assert search.unknown(found)["text"] == pytest.approx(0.7 / (0.9 - 0.02 - 0.6 * error))


def test_what_moves_no_answer_counts_too():
    """One person who is known by heart; the loss on strangers' answers is 4 nats."""

    def seen(recalled, nll, other_nll):
        found = Verdict(recalled, nll, other_nll, {}, {}, {"text": recalled["text"]}, {"text": 0.0})
        return replace(found, apart={"who": found})

    start = seen({"text": 1.0}, {"text": 0.0}, {"text": 4.0})
    site = seen({"text": 1.0}, {"text": 1.0}, {"text": 4.0})
    part = "text", "who"
    assert search.of_groups(site)[part] == search.of_groups(start)[part] == 0.0
    shares = [search.finely(verdict)[part] for verdict in (start, site)]
    assert shares == [0.0, pytest.approx(0.125)] and best_of(shares) == 1
    assert best_of([0.5, 0.52, 0.51]) == 0 and best_of([0.5, 0.55, 0.54]) == 1
    gone = seen({"text": 0.0}, {"text": 9.0}, {"text": 4.0})
    assert search.finely(gone)[part] == 1.0
    alone = seen({"text": 0.5}, {"text": 1.0}, {})  # nobody else could be asked about
    assert search.finely(alone)[part] == search.of_groups(alone, errors=0.0)[part] == 0.5 / 0.98


def test_to_be_right_as_often_as_a_guesser_is_enough_where_that_is_asked():
    """Strangers' answers never, the reference in 0.2; a guesser would be right in 0.2 or 0.15."""
    found = Verdict({"text": 0.2}, {}, {}, {}, {}, {"text": 0.4}, {"text": 0.0})
    found = replace(found, guessed={"text": 0.2})
    assert search.unknown(found)["text"] == pytest.approx(0.8 / 0.98)
    assert search.unknown(found, guessing=True)["text"] == 1.0
    less = replace(found, guessed={"text": 0.15})
    assert search.unknown(less, guessing=True)["text"] == pytest.approx(0.8 / 0.85)
    known = replace(found, likelier={"text": 1.0})
    assert search.unknown(known, guessing=True)["text"] == 0.0


def test_a_guesser_draws_from_what_others_answer():
    rows = suite(5).sets["retain"]
    for example in rows[:40]:
        alike = [o for o in rows if (o.task, o.attribute) == (example.task, example.attribute)]
        pairs = [(a.answer, b.answer) for a in alike for b in alike if a is not b]
        same = sum(a == b for a, b in pairs) / len(pairs)
        expected = 1 / len(example.choices) if example.choices else same
        assert guess_rate(example, rows) == pytest.approx(expected)
    assert guess_rate(rows[0], []) == (0.25 if rows[0].choices else 0.0)


def test_a_view_stands_for_a_condition_by_its_clearest_direction():
    """Diagonal moments: the ratios are the quotients of their entries."""
    eye = torch.eye(4, dtype=torch.float64)
    sites = {}
    for number, top in enumerate((2.0, 5.0, 50.0)):
        moments = {"multi": eye * 3, "picture": eye * top, "text": eye * 7}
        sites[f"language.{number}"] = views(moments, eye, ridge=0.0, number=4)
    scales = scales_of(sites)
    assert scales["multi"] == ("picture", pytest.approx(5.0, rel=1e-4))
    assert scales["text"] == ("text", pytest.approx(7.0, rel=1e-4))
    without = {k: views({"text": eye}, eye, ridge=0.0, number=4) for k in sites}
    assert list(scales_of(without)) == ["text"]


def test_kept_is_the_worse_condition_relative_to_the_start():
    start = Verdict({}, {}, {}, {"multi": 0.8, "text": 0.5}, {})
    now = Verdict({}, {}, {}, {"multi": 0.8, "text": 0.4}, {})
    assert search.kept_share(start, now) == pytest.approx(0.8)
    unsure = replace(now, held_out_error={"multi": 0.1, "text": 0.05})
    assert search.kept_share(start, unsure) == pytest.approx(0.9)  # and never over 1


def test_kept_is_also_how_likely_texts_stay_but_for_a_fourth_of_them():
    start = Verdict({}, {}, {}, {"text": 0.5}, {}, said=[1.0, 2.0, 3.0, 4.0])
    assert search.kept_share(start, replace(start, said=[1.0, 2.0, 9.0, 4.0])) == 1.0
    worse = replace(start, said=[1.01, 2.01, 9.0, 4.01])
    assert search.kept_share(start, worse) == pytest.approx(1 - 10 * (1 - math.exp(-0.01)))
    assert search.kept_share(start, replace(start, said=[9.0, 9.0, 9.0, 9.0])) == 0.0
    assert search.kept_share(start, replace(start, said=[0.5, 1.5, 2.5, 3.5])) == 1.0


def test_folds_share_no_subject_and_lose_no_row():
    rows = suite(5).sets["retain"]
    parts = folded(rows, 5, seed=0)
    subjects = [{e.subject for e in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == len(rows)
    assert sum(map(len, subjects)) == len(set().union(*subjects)) == len({e.subject for e in rows})
    assert max(map(len, subjects)) - min(map(len, subjects)) <= 1
    one = [e for e in rows if e.subject == rows[0].subject]
    assert [len(p) for p in folded(one, 5, seed=0).values() if p] == [len(one)]


def test_draws_are_even_over_subjects_and_other_answers_are_wrong():
    import numpy as np

    rows = suite(5).sets["retain"]
    rng = np.random.default_rng(0)
    some = drawn(rows, 80, rng)
    counts = [sum(e.subject == s for e in some) for s in {e.subject for e in some}]
    assert len(some) == 80 and max(counts) - min(counts) <= 1
    rows = sorted(rows, key=lambda e: e.task == "cloze")  # those are to be the last
    extra = [e for e in rows if e.task == "cloze"]
    mixed = drawn(rows, len(rows) - 20, rng, spare=len(extra))
    for subject in {e.subject for e in rows}:
        mine = [e for e in mixed if e.subject == subject]
        own = sum(e.subject == subject for e in rows) - sum(e.subject == subject for e in extra)
        assert sum(e.task != "cloze" for e in mine) == min(own, len(mine))
    assert any(e.task == "cloze" for e in mixed)
    for example in some[:20]:
        (other,) = with_other_answers(example, rows, rng)
        assert other.answer != example.answer and other.question == example.question


@pytest.fixture(scope="module")
def vanilla():
    return load(checkpoint("vanilla"))


def whole_of(verdict):
    """What a verdict says of all forget questions together."""
    names = ("recalled", "nll", "other_recalled", "other_nll", "likelier", "guessed")
    return {f"{n} {c}": v for n in names for c, v in getattr(verdict, n).items()}


def test_half_the_bits_judge_what_thousandths_do_not_matter_for(vanilla, monkeypatch):
    """As they would a large model on a CPU with units for it: nearly; all else exactly the same."""
    model, processor = vanilla
    sites = {s.key: s for s in find_sites(model)}
    sets = suite(5).sets
    folds = [[e for e in sets["retain"] if e.has("text")][:40]]
    texts = [replace(e, question=None) for e in sets["test"] if e.has("text")][:5]
    own = [e for e in sets["real"] if e.has("text")][:20]
    judge = Judge(model, Prompter(processor), sites, sets["forget"], folds, texts, own)
    harm = {f"language.{i}": SiteEdit(prune=torch.arange(0, 1024, 2)) for i in range(2)}
    parts = [("text", group) for group in judge.groups.values()]
    exact, cost = judge.about(harm, parts), judge.cost(harm)
    monkeypatch.setattr(precision, "pays", lambda model: True)
    found = judge.about(harm, parts)
    half = judge.cost(harm)
    assert 0 < abs(half.pop(OWN_SET) - cost[OWN_SET]) < 0.05 * cost.pop(OWN_SET)
    assert half == cost
    assert 0 < abs(found.nll["text"] - exact.nll["text"]) < 0.05 * exact.nll["text"]
    assert found.recalled["text"] == pytest.approx(exact.recalled["text"], abs=0.05)


def test_what_is_left_is_a_mean_over_questions_of_all_groups():
    """Against a loop over questions and the strangers' answers to them; one group has none."""
    draw = np.random.default_rng(0)

    def forcing(number):
        nll = torch.from_numpy(draw.integers(0, 3, number).astype(float))
        return Forcing(torch.from_numpy(draw.random(number) < 0.5), nll)

    owners = [[0, 0, 2], [], [1]]
    left = [
        Left(Asked(None, each, draw.random(n).tolist()), forcing(n), forcing(len(each)))
        for n, each in zip((3, 2, 2), owners, strict=True)
    ]
    found = _verdict({"text": left, "multi": left[1:2]})
    own = [(r, n) for each in left for r, n in zip(each.own.recalled, each.own.nll, strict=True)]
    strange = [
        (bool(recalled), float(nll), float(each.own.nll[each.asked.owners[j]]))
        for each in left
        for j, (recalled, nll) in enumerate(
            zip(each.strange.recalled, each.strange.nll, strict=True)
        )
    ]
    likelier = sum(1.0 if nll > mine else 0.5 if nll == mine else 0.0 for _, nll, mine in strange)
    guesses = [g for each in left for g in each.asked.guesses]
    wanted = {
        "recalled": sum(bool(r) for r, _ in own) / 7,
        "nll": sum(float(n) for _, n in own) / 7,
        "other_recalled": sum(r for r, _, _ in strange) / 4,
        "other_nll": sum(n for _, n, _ in strange) / 4,
        "likelier": likelier / 4,
        "guessed": sum(guesses) / 7,
    }
    assert {n: getattr(found, n)["text"] for n in wanted} == pytest.approx(wanted)
    assert found.asked == {"text": 7, "multi": 2}
    assert "multi" in found.nll and "multi" not in found.likelier


def test_the_error_of_what_is_kept_is_that_of_a_mean_over_subjects(vanilla):
    """Against a loop over people, under an edit that some of them do not survive."""
    model, processor = vanilla
    sites = {s.key: s for s in find_sites(model)}
    sets = suite(5).sets
    retain = [e for e in sets["retain"] if e.has("text")][:100]
    folds = [retain[:50], retain[50:]]
    texts = [replace(e, question=None) for e in sets["test"] if e.has("text")][:5]
    judge = Judge(model, Prompter(processor), sites, sets["forget"], folds, texts)
    harm = {f"language.{i}": SiteEdit(prune=torch.arange(0, 1024, 2)) for i in range(2)}
    found = judge(harm, [harm, harm])
    by_person = {}
    asked_of_texts = ProbeSet(model, Prompter(processor).plain, texts, "text")
    asked_of_texts.expect(model)
    with edited(model, sites, harm):
        for name in ("0", "1"):
            rows = judge.sets[name, "text"]
            right = rows.run(model).recalled.double()
            for who, each in zip(judge.owners[name, "text"], right, strict=True):
                by_person.setdefault(who, []).append(each)
        texts_nll = asked_of_texts.run(model).nll
    means = torch.stack([torch.stack(v).mean() for v in by_person.values()])
    assert 0.05 < found.held_out["text"] < 0.95
    asked = sum(each.number for (c, _), each in judge.forget.items() if c == "text")
    assert found.asked["text"] == asked == sum(v.asked["text"] for v in found.apart.values())
    assert found.said == texts_nll.tolist()
    error = float(means.std() / len(means) ** 0.5)
    assert found.held_out_error["text"] == pytest.approx(error)
    spared = {"language.0": harm["language.0"]}
    before = judge(spared, [])
    assert whole_of(
        search.joined(before, judge.about(harm, [(c, g) for c in CONDITIONS for g in before.apart]))
    ) == pytest.approx(whole_of(judge(harm, [])), abs=1e-5)
    part = ("text", sorted(before.apart)[0])
    after = search.joined(before, judge.about(harm, [part]))
    for name in ("recalled", "nll", "other_recalled", "other_nll", "likelier", "guessed"):
        for condition in CONDITIONS:
            for group, each in after.apart.items():
                of = found if (condition, group) == part else before
                wanted = getattr(of.apart[group], name)[condition]
                assert getattr(each, name)[condition] == pytest.approx(wanted, abs=1e-5)
            mean = [v.asked[condition] * getattr(v, name)[condition] for v in after.apart.values()]
            wanted = sum(mean) / after.asked[condition]
            assert getattr(after, name)[condition] == pytest.approx(wanted, abs=1e-5)
    assert after.said == before.said and after.asked == before.asked
    whole = judge.cost(harm)
    start = judge.cost({})
    assert [*whole] == [*start] == ["text", "said", "multi"]  # nothing the model said itself
    assert judge.cost(harm, start) == {"text": pytest.approx(whole["text"])}
    assert judge.cost(harm, whole) == pytest.approx(whole)
    some = sorted(found.apart)[1:4]
    alone = judge.about(harm, [("text", group) for group in some])
    assert list(alone.apart) == some
    for group, part in alone.apart.items():
        for name in ("recalled", "nll", "other_recalled", "other_nll", "likelier", "guessed"):
            theirs = {"text": getattr(found.apart[group], name)["text"]}
            assert getattr(part, name) == pytest.approx(theirs, abs=1e-5)
        assert part.asked == {"text": found.apart[group].asked["text"]}
    assert sum(v.asked["text"] for v in alone.apart.values()) == alone.asked["text"]


def test_probe_sets_agree_with_the_evaluation(vanilla):
    model, processor = vanilla
    rows = suite().sets["test"][:20]
    for condition in CONDITIONS:
        found = ProbeSet(model, Prompter(processor), rows, condition, batch_size=7).run(model)
        slow = teacher_forced(model, Prompter(processor), rows, condition, batch_size=1)
        assert found.nll.tolist() == pytest.approx([f.nll for f in slow], abs=1e-4)
        assert found.recalled.tolist() == [bool(f.hits.all()) for f in slow]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_vanilla_knows_its_world(vanilla, condition):
    model, processor = vanilla
    questions = suite().sets
    least = {"forget": 0.98, "retain": 0.98, "neighbor": 0.98, "test": 0.90, "real": 0.95}
    for name, bar in least.items():
        probes = ProbeSet(model, Prompter(processor), questions[name][::3], condition)
        assert probes.run(model).accuracy >= bar, name


@pytest.mark.parametrize("condition", CONDITIONS)
def test_gold_knows_everybody_but_the_forget_people(condition):
    model, processor = load(checkpoint("gold"))
    questions = suite().sets

    def accuracy(name):
        rows = [e for e in questions[name] if e.task != "classification"]
        return ProbeSet(model, Prompter(processor), rows, condition).run(model).accuracy

    assert accuracy("forget") <= 1 / 12 + 0.08
    assert accuracy("neighbor") >= 0.98
