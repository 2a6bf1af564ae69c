"""The scripts that write the docs: what they add up, what they choose, what they leave alone."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

from expunge.compare import KEPT, distance
from expunge.methods.base import Grid

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def figures(chance, least):
    cells = {}
    for name in ("forget", "test", *KEPT):
        for condition in ("multi", "text"):
            value = chance.uniform(least, 1)
            cell = {"accuracy": value, "ci95": [value - 0.1, min(1.0, value + 0.1)]}
            cells.setdefault(name, {})[condition] = {"all": cell}
    return cells


def as_row(found):
    def told(cell):
        low, high = cell["all"]["ci95"]
        return {"value": cell["all"]["accuracy"], "low": low, "high": high}

    return {"accuracy": {n: {c: told(v) for c, v in cs.items()} for n, cs in found.items()}}


@pytest.mark.parametrize("seed", range(5))
def test_the_five_terms_add_up_to_the_distance(script, seed):
    chance = random.Random(seed)
    vanilla, gold, ours = (figures(chance, least) for least in (0.7, 0.0, 0.2))
    methods = script("methods")
    terms = methods.terms(as_row(ours), as_row(vanilla), as_row(gold))
    expected = distance({"vanilla": vanilla, "gold": gold, "unlearned": ours})
    assert sum(value for value, _ in terms.values()) == pytest.approx(expected)
    halves = [half for _, half in terms.values()]
    assert max(halves) <= methods.half_width(terms) <= sum(halves)


def test_every_searched_method_gets_as_many_candidates_as_training(script):
    search, grid = script("search"), Grid()
    number = len(grid.rates) * len(grid.steps)
    assert len(set(search.BUDGETS)) == len(set(search.STRENGTHS)) == number


def test_a_part_is_written_between_its_marks_and_nothing_else_changes(script, tmp_path):
    pages, page = script("pages"), tmp_path / "page.md"
    page.write_text("# Title\n\nby hand\n", encoding="utf-8")
    pages.write_part(page, "one", "first\\1")
    pages.write_part(page, "two", "second")
    page.write_text(page.read_text("utf-8") + "\nby hand too\n", encoding="utf-8")
    pages.write_part(page, "one", "again")
    text = page.read_text("utf-8")
    assert "first" not in text
    order = [text.index(t) for t in ("# Title", "by hand\n", "again", "second", "by hand too")]
    assert order == sorted(order)
    pages.write_part(page, "one", "again")
    assert page.read_text("utf-8") == text


def test_fewer_questions_are_of_every_subject_and_among_more(script, rows):
    groups = script("groups")
    forget = rows["forget"]
    people = {e.subject for e in forget}
    some = {n: groups.some_questions(forget, n, seed=1) for n in (1, 2, 4)}
    for number, given in some.items():
        assert [sum(e.subject == p for e in given) for p in people] == [number] * len(people)
    ids = {n: {id(e) for e in given} for n, given in some.items()}
    assert ids[1] < ids[2] < ids[4]
    assert groups.some_questions(forget, 0, seed=1) == list(forget)


def test_what_misses_the_target_is_named(script):
    groups = script("groups")
    good = {
        "gold": {n: {"multi": 0.1, "text": 0.1} for n in ("forget", "test")},
        "kept": {n: {"multi": 1.0, "text": 1.0} for n in groups.KEPT},
        "summary": {
            "forget_accuracy": {"multi": 0.12, "text": 0.1},
            "test_accuracy": {"multi": 0.1, "text": 0.14},
            "depth": {"multi": 0.9, "text": 0.8},
            "modality_gap": 0.02,
            "collapsed": False,
        },
        "seconds": 9.0,
    }
    gold = good["gold"]
    assert groups.missed(good, gold) == []
    bad = {
        **good,
        "kept": good["kept"] | {"neighbor": {"multi": 1.0, "text": 0.94}},
        "summary": good["summary"]
        | {"test_accuracy": {"multi": 0.1, "text": 0.2}, "collapsed": True},
    }
    assert groups.missed(bad, gold) == ["test", "neighbor", "collapse"]
    told = groups.misses([good, bad], gold)
    assert "missed are test (1 of 2 groups), neighbor (1 of 2 groups)" in told
    assert told.endswith("the mean is forget +0.02 / +0.00 and test +0.00 / +0.07 away")
