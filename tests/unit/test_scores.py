"""The cells of results.json, against scores worked out one answer at a time."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from expunge import metrics
from expunge.data import CONDITIONS, Example
from expunge.evaluate import Answered
from expunge.scores import alignment, by_subject, cells
from expunge.summary import changes, likelihood_of, utility

TASKS = ("generation", "classification", "cloze")


def answers(seed, number=36, right=0.5):
    """Answers about six people, of every task, right by chance."""
    rng = random.Random(seed)
    found = []
    for i in range(number):
        task = TASKS[i % 3]
        choices = ("a tall tree", "a small sea") if task == "classification" else None
        example = Example(f"s{i % 6}", "a tall tree", "who?", b"", "who is it?", choices, task)
        good = rng.random() < right
        said = "a tall tree" if good else "a small sea"
        ratio = rng.choice([0.0, 0.3, 2.5, math.inf]) if choices else None
        nll, shares = rng.random() * 3, (rng.random(), rng.random())
        rouge = metrics.rouge_l(said, example.answer)
        found.append(Answered(example, said, good, rouge, nll, *shares, ratio))
    return found


@pytest.fixture
def rows():
    return answers(1)


def test_means_and_their_intervals(rows):
    found = cells(rows, 3, name="retain")
    subjects = [r.example.subject for r in rows]
    for name, read in {
        "nll": lambda r: r.nll,
        "answer_probability": lambda r: math.exp(-r.nll),
        "exact_memorisation": lambda r: r.memorised,
        "extraction_strength": lambda r: r.extraction,
    }.items():
        values = [read(r) for r in rows]
        assert found[name] == pytest.approx(np.mean(values))
        expected = metrics.bootstrap_ci(values, subjects, seed=3)
        assert found["ci95"][name] == pytest.approx(list(expected))
    opened = [r for r in rows if r.example.task == "generation"]
    bleu = [metrics.bleu(r.said, "a tall tree") for r in opened]
    assert found["bleu"] == pytest.approx(np.mean(bleu))
    assert found["classification"]["chance"] == 0.5


@pytest.mark.parametrize("name", ["forget", "test", "retain"])
def test_truth_ratios_are_read_the_other_way_round_where_nothing_is_to_be_known(rows, name):
    rows = [*rows, replace(rows[1], truth_ratio=math.nan)]
    cell = cells(rows, name=name)["truth_ratio"]
    ratios = [r.truth_ratio for r in rows[:-1] if r.truth_ratio is not None]
    assert cell["n"] == len(ratios) == 12 and 0.0 in ratios and math.inf in ratios
    if name == "retain":
        score = np.mean([max(0.0, 1 - ratio) for ratio in ratios])
    else:
        score = np.mean([min(r, 1 / r) if r else 0.0 for r in ratios])
    assert cell["score"] == pytest.approx(score)
    told = [None if math.isinf(ratio) else ratio for ratio in ratios]
    assert cell.get("values") == (told if name == "forget" else None)


def test_without_choices_there_is_no_truth_ratio(rows):
    assert "truth_ratio" not in cells([r for r in rows if not r.example.choices])
    assert cells([]) == {}


def test_agreement_is_over_what_was_asked_both_ways(rows):
    other = [replace(r, right=not r.right, rouge_l=0.25) for r in rows[:30]]
    stranger = replace(rows[0], example=replace(rows[0].example))
    found = alignment(rows, [*reversed(other), stranger])
    pairs = list(zip(rows[:30], other, strict=True))
    assert found["n"] == 30 and found["acc_r"] == found["acc_f"] == 0
    lost = [(a.rouge_l**2 + b.rouge_l**2) / (a.rouge_l + b.rouge_l) for a, b in pairs]
    assert found["rouge_f"] == pytest.approx(np.mean(lost))
    same = alignment(rows, rows)
    assert same["acc_r"] == np.mean([r.right for r in rows]) and same["acc_f"] == 1 - same["acc_r"]
    assert alignment(rows, [stranger]) is None and alignment(rows, []) is None


def figures(**sides):
    """set -> condition -> cell of rows, by condition."""
    return {
        name: {c: cells(rows, name=name) for c, rows in zip(CONDITIONS, both, strict=True)}
        for name, both in sides.items()
    }


def test_what_changed_is_paired_by_subject():
    before, after = answers(1, right=0.9), answers(2, right=0.2)
    after = [replace(b, right=a.right) for a, b in zip(after, before, strict=True)]
    told = by_subject(after).split()
    assert len(told) == 6 and all(each.endswith("/6") for each in told)
    found = changes(figures(retain=(before, before)), figures(retain=(after, before)))["retain"]
    subjects = [r.example.subject for r in after]
    expected = metrics.paired_bootstrap(
        [float(r.right) for r in after], [float(r.right) for r in before], subjects
    )
    for name, value in expected.items():
        assert found["multi"][name] == pytest.approx(value, abs=1e-9)
    assert found["text"]["difference"] == 0 and found["text"]["ci95"] == [0, 0]
    fewer = figures(retain=(before[:-1], before[:-1]))
    assert changes(fewer, figures(retain=(after, after))) == {}
    assert changes({"retain": {"multi": {}}}, figures(retain=(after, after))) == {}


def test_forget_quality_and_utility_are_those_of_the_answers():
    models = {
        name: figures(**{s: (answers(i), answers(i + 9)) for s in ("forget", "retain", "real")})
        for i, name in enumerate(("vanilla", "unlearned", "gold"))
    }
    found = likelihood_of(models)
    ratios = [[r.truth_ratio for r in answers(i) if r.truth_ratio is not None] for i in (1, 2)]
    assert found["forget_quality"]["multi"] == metrics.forget_quality(*ratios)
    assert found["js_distance"]["multi"] == metrics.js_distance(*ratios)
    cell = models["unlearned"]["retain"]["text"]
    each = [cell["all"]["accuracy"], cell["answer_probability"], cell["truth_ratio"]["score"]]
    harmonic = 3 / sum(1 / value for value in each)  # real has the same cells
    assert found["model_utility"]["text"] == pytest.approx(harmonic)
    assert found["vanilla_utility"]["multi"] == utility(models["vanilla"], "multi")
    del models["gold"]
    assert likelihood_of(models)["forget_quality"] == {}
    assert utility({}, "multi") is None
