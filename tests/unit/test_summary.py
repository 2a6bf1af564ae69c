"""The summary of a run, against figures worked out by hand."""

import pytest

from expunge.summary import depth_of, figure, kept, nll_of, still_known, summarise
from expunge.text import results_table


def cell(accuracy, nll, *, collapsed=None):
    found = {"all": {"accuracy": accuracy}, "nll": nll}
    if collapsed is not None:
        found["collapse"] = {"collapsed": collapsed}
    return found


def model(**sets):
    """Set -> (accuracy multi, nll multi, accuracy text, nll text); None leaves a condition out."""
    found = {}
    for name, (*multi, text_accuracy, text_nll) in sets.items():
        found[name] = {}
        if multi[0] is not None:
            found[name]["multi"] = cell(*multi)
        if text_accuracy is not None:
            found[name]["text"] = cell(text_accuracy, text_nll)
    return found


VANILLA = model(
    forget=(0.9, 0.2, 0.8, 0.4),
    test=(0.7, 0.6, 0.6, 0.8),
    retain=(0.8, 0.3, 0.5, 0.9),
    neighbor=(0.5, 1.0, 0.0, 2.0),
    real=(1.0, 0.1, 0.8, 0.1),
    skills=(0.6, 0.5, None, None),
)
UNLEARNED = model(
    forget=(0.3, 2.2, 0.1, 3.4),
    test=(0.2, 2.6, 0.1, 3.0),
    retain=(0.6, 0.5, 0.5, 0.9),
    neighbor=(0.4, 1.1, 0.1, 2.0),
    real=(0.9, 0.1, 0.8, 0.1),
    skills=(0.45, 0.6, None, None),
)
GOLD = model(forget=(0.1, 4.2, 0.1, 2.4), test=(0.1, 4.6, 0.1, 2.8))


def test_by_hand():
    summary = summarise({"vanilla": VANILLA, "unlearned": UNLEARNED, "gold": GOLD})
    assert summary["forget_accuracy"] == {"multi": 0.3, "text": 0.1}
    assert summary["test_accuracy"] == {"multi": 0.2, "text": 0.1}
    assert summary["retain_kept"] == pytest.approx({"multi": 0.75, "text": 1.0})
    # neighbor by text: vanilla knew nothing, so that no share of it can be kept
    assert summary["neighbor_kept"] == pytest.approx({"multi": 0.8})
    assert summary["real_kept"] == pytest.approx((0.9 + 1.0) / 2)
    assert summary["skills_kept"] == pytest.approx(0.75)
    assert summary["modality_gap"] == pytest.approx(0.2)
    # multi: (2.4 - 0.4) / (4.4 - 0.4); text: (3.2 - 0.6) / (2.6 - 0.6)
    assert summary["depth"] == pytest.approx({"multi": 0.5, "text": 1.3})
    assert summary["collapsed"] is False


def test_a_subject_that_is_still_known_is_counted():
    """Half of ten and eleven of eighteen; not 8 of 18, nor 3 of 5, of whom too little is asked."""

    def told(subjects):
        return {"forget": {"text": {"subjects": subjects}}}

    before, after = told("10/12 18/18 18/18 5/5 0/6"), told("5/12 11/18 8/18 3/5 0/6")
    assert still_known(before, after) == {"text": 2}
    assert still_known(before, told("4/12 8/18 0/18 3/5 6/6")) == {"text": 0}
    assert still_known(VANILLA, UNLEARNED) == {}


@pytest.mark.parametrize(
    ("known", "warning"),
    [
        ({"multi": 0, "text": 0}, None),
        ({"multi": 0, "text": 1}, "WARNING: 1 forget subject is still known (text only), see"),
        ({"multi": 3}, "WARNING: 3 forget subjects are still known (image+text), see"),
    ],
)
def test_a_command_warns_of_subjects_that_are_still_known(known, warning):
    summary = summarise({"vanilla": VANILLA, "unlearned": UNLEARNED}) | {"still_known": known}
    told = results_table({"models": {}, "notes": [], "summary": summary}, None)
    assert ("still known" in told) == bool(warning) and (warning or "") in told


def test_without_gold_there_is_no_depth():
    summary = summarise({"vanilla": VANILLA, "unlearned": UNLEARNED})
    assert summary["depth"] == {"multi": None, "text": None}


def test_gold_that_knows_more_than_vanilla_gives_no_depth():
    known = model(forget=(1.0, 0.1, 1.0, 0.1))
    assert depth_of(VANILLA, UNLEARNED, known) == {"multi": None, "text": None}


def test_depth_is_0_for_vanilla_and_1_for_gold():
    assert depth_of(VANILLA, VANILLA, GOLD) == pytest.approx({"multi": 0, "text": 0})
    assert depth_of(VANILLA, GOLD, GOLD) == pytest.approx({"multi": 1, "text": 1})


def test_missing_sets_and_conditions():
    vanilla = model(forget=(0.5, 1.0, None, None))
    unlearned = model(forget=(0.25, 2.0, None, None))
    gold = model(forget=(0.0, 3.0, None, None))
    summary = summarise({"vanilla": vanilla, "unlearned": unlearned, "gold": gold})
    assert summary["forget_accuracy"] == {"multi": 0.25}
    assert summary["test_accuracy"] == {}
    assert summary["retain_kept"] == summary["neighbor_kept"] == {}
    assert summary["real_kept"] is None
    assert summary["skills_kept"] is None
    assert summary["modality_gap"] is None
    assert summary["depth"] == pytest.approx({"multi": 0.5})


def test_no_forget_set_at_all():
    summary = summarise(
        {"vanilla": model(retain=(0.5, 1, 0.5, 1)), "unlearned": model(retain=(0.5, 1, 0.4, 1))}
    )
    assert summary["forget_accuracy"] == {}
    assert summary["depth"] == {}
    assert summary["retain_kept"] == pytest.approx({"multi": 1.0, "text": 0.8})


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [(False, True, True), (True, True, False), (False, False, False), (None, None, False)],
)
def test_collapse_counts_where_vanilla_has_not_collapsed(before, after, said):
    vanilla = {"forget": {"multi": cell(0.5, 1.0, collapsed=before)}}
    unlearned = {"forget": {"multi": cell(0.5, 1.0, collapsed=after)}}
    assert summarise({"vanilla": vanilla, "unlearned": unlearned})["collapsed"] is said


def test_parts():
    assert figure(VANILLA, "forget", "multi") == 0.9
    assert figure(VANILLA, "forget", "multi", "nll") == 0.2
    assert figure(VANILLA, "skills", "text") is None
    assert figure(None, "forget", "multi") is None
    assert nll_of(VANILLA, "multi") == pytest.approx(0.4)
    assert nll_of(None, "multi") is None
    assert kept(VANILLA, UNLEARNED, "nothing") == {}
