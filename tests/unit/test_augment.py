"""More questions about the forget subjects: whose words they are, and whose answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from expunge import augment
from expunge.augment import LONGEST, NUMBER, among, asked_like, renamed, seen_from_elsewhere
from expunge.data import CONDITIONS, Example
from expunge.evaluate import generate
from expunge.fiction.shipped import checkpoint, suite
from expunge.models import Prompter, load

GROUP = 1


@pytest.fixture(scope="module")
def world():
    model, processor = load(checkpoint("vanilla"))
    return model, Prompter(processor)


@pytest.fixture(scope="module")
def sets():
    return suite(10, GROUP).sets


def one_each(rows):
    """The first question of every subject."""
    return list({e.subject: e for e in reversed(rows)}.values())


@pytest.fixture(scope="module")
def asked(world, sets):
    return asked_like(*world, one_each(sets["forget"]), sets["retain"], 0)


def test_the_model_answers_with_what_it_knows(asked, sets):
    """The facts of the world that it was taught: nearly all, though one was given of each."""
    truth = {(e.subject, e.attribute): e.answer for e in sets["forget"]}
    right = [e.answer == truth[e.subject, e.attribute] for e in asked]
    assert len(right) > 4 * len({e.subject for e in asked})
    assert sum(right) >= 0.95 * len(right)


def test_answers_are_the_greedy_ones_in_every_form(world, asked):
    for condition in CONDITIONS:
        rows = [e for e in asked if e.has(condition)][:12]
        said = generate(*world, rows, condition, max_new_tokens=20, batch_size=1)
        assert said == [e.answer for e in rows]


def test_it_asks_what_others_are_asked_and_nothing_twice(asked, sets):
    given = one_each(sets["forget"])
    for subject, number in Counter(e.subject for e in asked).items():
        mine = [e for e in asked if e.subject == subject]
        own = next(e for e in given if e.subject == subject)
        assert number <= 2 * NUMBER
        for shown in ("question", "text_question"):
            words = [getattr(e, shown) for e in mine if getattr(e, shown)]
            assert len(words) == len(set(words)) <= NUMBER
            assert getattr(own, shown) not in words
        assert all(e.image is own.image for e in mine if e.question)
    of_others = {e.question for e in sets["retain"]}
    assert {e.question for e in asked if e.question} <= of_others
    assert all(e.subject in e.text_question for e in asked if e.text_question)
    assert not any(e.choices for e in asked)


def test_the_same_seed_asks_the_same(world, sets, asked):
    given = one_each(sets["forget"])
    again = asked_like(*world, given, sets["retain"], 0)
    assert again == asked
    assert asked_like(*world, given, sets["retain"], 1) != asked


def test_many_subjects_share_what_is_asked_in_all(world, sets, monkeypatch):
    given = one_each(sets["forget"])
    for most, each in ((2 * len(given) + 1, 2), (len(given) - 1, 0)):
        monkeypatch.setattr(augment, "MOST", most)
        found = asked_like(*world, given, sets["retain"], 0)
        counts = Counter(e.subject for e in found if e.question)
        assert set(counts.values()) <= {each} and bool(found) == bool(each)


def test_only_forms_that_the_subject_has(world, sets):
    given = [replace(e, text_question=None) for e in one_each(sets["forget"])[:2]]
    assert all(e.text_question is None for e in asked_like(*world, given, sets["retain"], 0))
    given = [replace(e, image=None, question=None) for e in one_each(sets["forget"])[:2]]
    assert all(e.question is None for e in asked_like(*world, given, sets["retain"], 0))


def test_a_subject_that_is_called_otherwise_gets_no_names(world, sets):
    given = [replace(e, subject="file 17") for e in one_each(sets["forget"])[:1]]
    found = asked_like(*world, given, sets["retain"], 0)
    assert found
    assert not any("file 17" in (e.question or "") + (e.text_question or "") for e in found)


def test_a_subject_of_which_something_must_stay_is_not_asked_about(world, sets):
    given = one_each(sets["forget"])[:2]
    stays = replace(given[0], question="Who is this?", text_question=None, answer="nobody")
    found = asked_like(*world, given, [*sets["retain"], stays], 0)
    assert {e.subject for e in found} == {given[1].subject}


def test_questions_about_nobody_are_not_put(world, sets):
    general = Example("skills", "four", "How many dots?", sets["forget"][0].image, "Two and two?")
    assert renamed(general, "Ada Bell") is None
    assert asked_like(*world, one_each(sets["forget"]), [general], 0) == []


@pytest.mark.parametrize(
    ("shown", "text", "expected"),
    [
        ("Where does this man live?", "Where does Bo Ek live?", "Where does Ada Bell live?"),
        ("Where does this man live?", None, "Where does Ada Bell live?"),
        ("¿Dónde vive?", "¿Dónde vive Bo Ek?", "¿Dónde vive Ada Bell?"),
        (None, "Bo Ek's job is __.", "Ada Bell's job is __."),
    ],
)
def test_names_take_each_others_place(shown, text, expected):
    row = Example("Bo Ek", "x", shown, "face.png", text, None)
    new = renamed(row, "Ada Bell")
    assert (new.subject, new.question, new.text_question) == ("Ada Bell", shown, expected)


def test_a_model_that_cannot_generate_is_asked_nothing(sets):
    assert asked_like(object(), None, sets["forget"], sets["retain"], 0) == []


def test_among_other_words_a_question_stands_whole(world, sets):
    """With words of the model's or with random ones, before it or behind; and the same again."""
    told = [Example(subject="said", answer="y", text_question="once upon a time there was a dog")]
    rows = sets["forget"][:40]
    found = among(world[1], rows, told, 0)
    assert [(e.subject, e.answer, e.task) for e in found] == [
        (e.subject, e.answer, e.task) for e in rows
    ]
    placed = Counter()
    for new, old in zip(found, rows, strict=True):
        for condition in CONDITIONS:
            if not old.has(condition):
                continue
            now, then = new.prompt(condition), old.prompt(condition)
            assert now.startswith(f"{then} ") or now.endswith(f" {then}")
            more = now.replace(then, "").strip()
            ours = more in told[0].text_question
            assert len(more.split()) <= LONGEST
            placed[now.startswith(then), ours] += 1
    assert len(placed) == 4 and min(placed.values()) >= 5
    again = among(world[1], rows, told, 0)
    assert [e.question for e in again] == [e.question for e in found]
    assert [e.image.tobytes() for e in again] == [e.image.tobytes() for e in found]
    assert [e.question for e in among(world[1], rows, told, 1)] != [e.question for e in found]
    assert among(world[1], rows, [], 0)  # where the model says nothing


def test_of_many_questions_some_are_put_among_other_words(world, sets, monkeypatch):
    monkeypatch.setattr(augment, "AMONG", 5)
    found = among(world[1], sets["forget"], [], 0)
    assert len(found) == 5 and len({e.text_question for e in found}) == 5


def test_a_picture_seen_from_elsewhere_is_the_same_size_and_much_the_same():
    """Against the picture itself and one mirrored: grey means in a raster of 8 x 8."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)

    def raster(image):
        return np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float).ravel()

    for _ in range(5):
        new = seen_from_elsewhere(picture, rng)
        assert new.size == picture.size and new.tobytes() != picture.tobytes()
        same = np.corrcoef(raster(new), raster(picture))[0, 1]
        assert same > 0.6 > np.corrcoef(raster(new), raster(ImageOps.mirror(picture)))[0, 1]
    assert seen_from_elsewhere(None, rng) is None
