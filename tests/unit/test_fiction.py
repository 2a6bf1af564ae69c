"""The embedded world: repeatable, disjoint, balanced, and honest about what is held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from expunge.content import fingerprint
from expunge.data import CONDITIONS, SETS, TASKS, Suite, read, write_jsonl
from expunge.errors import InputError
from expunge.fiction.build import rename_for_all
from expunge.fiction.draw import COLOURS, SHAPES
from expunge.fiction.forms import FORMS, VALUES, fill
from expunge.fiction.shipped import checkpoint
from expunge.fiction.skills import (
    LARGEST,
    NUMBERS,
    held_out_look,
    held_out_pair,
    held_out_skills,
    skill_row,
)
from expunge.fiction.world import BLOCK, World, person_rows, questions


@pytest.fixture(scope="module")
def world():
    """The shipped one."""
    return World()


@pytest.fixture(scope="module")
def small():
    return World(private=24, public=3)


def test_size(world):
    assert len(world.private_people) >= 80
    assert len(world.public_figures) == 20
    assert all(p.public for p in world.public_figures)
    assert not any(p.public for p in world.private_people)


def test_names_and_faces_are_unique(world):
    names = [p.name for p in world.people]
    assert len(set(names)) == len(names)
    words = [word for p in world.private_people for word in p.name.split()]
    assert len(set(words)) == len(words)
    faces = [p.face for p in world.people]
    assert min(a.distance(b) for i, a in enumerate(faces) for b in faces[:i]) >= 5


def test_every_block_of_twelve_has_every_value_once(world):
    people = world.private_people
    assert len(people) % BLOCK == 0
    for start in range(0, len(people), BLOCK):
        block = people[start : start + BLOCK]
        for attribute, values in VALUES.items():
            assert len(values) == BLOCK
            assert sorted(p.facts[attribute] for p in block) == sorted(values)


def test_the_same_seed_is_the_same_world(small):
    again = World(private=24, public=3)
    assert again.people == small.people
    mine, theirs = small.suite(), again.suite()
    for name in SETS:
        assert fingerprint(mine[name][:40]) == fingerprint(theirs[name][:40])
        assert [r.text_question for r in mine[name]] == [r.text_question for r in theirs[name]]
    other = World(seed=1, private=24, public=3)
    assert other.people != small.people
    rows = person_rows(other.people[:1], seen=True)
    assert fingerprint(rows) != fingerprint(mine["forget"][: len(rows)])


@pytest.mark.parametrize(("percent", "number"), [(5, 4), (10, 8), (15, 13)])
@pytest.mark.parametrize("group", [0, 1, 7])
def test_splits_divide_the_private_people(world, percent, number, group):
    split = world.split(percent, group)
    assert list(split) == ["forget", "retain", "neighbor"]
    assert len(split["forget"]) == number
    rest = len(world.private_people) - number
    assert len(split["retain"]) == -(-rest * 2 // 3)
    everyone = [p.name for part in split.values() for p in part]
    assert sorted(everyone) == sorted(p.name for p in world.private_people)


def test_groups_differ_and_sizes_nest_in_the_shipped_one(world):
    forget = {g: {p.name for p in world.split(10, g)["forget"]} for g in range(4)}
    assert len({frozenset(names) for names in forget.values()}) == 4
    five, ten = ({p.name for p in world.split(n)["forget"]} for n in (5, 10))
    assert five < ten
    facts = Counter(p.facts["job"] for p in world.split(10)["forget"])
    assert set(facts.values()) == {1}


@pytest.mark.parametrize("percent", [0, -5, 50.1, float("nan")])
def test_split_share_out_of_range(small, percent):
    with pytest.raises(InputError, match="forget share"):
        small.split(percent)


def test_the_smallest_split_forgets_one_person(small):
    assert len(small.split(0.01)["forget"]) == 1


@pytest.fixture(scope="module")
def sets(small):
    return small.suite()


def test_suite_rows_are_valid(sets):
    suite = Suite.of(**sets)
    assert set(suite.sets) == set(SETS)
    for name, rows in suite.sets.items():
        for row in rows:
            assert row.subject
            assert row.answer
            assert row.task in TASKS
            assert any(row.has(c) for c in CONDITIONS)
            if name != "skills":
                assert all(row.has(c) for c in CONDITIONS)
                assert row.subject not in row.question
                assert row.subject in row.text_question
                assert row.answer in VALUES[row.attribute]
            if row.task == "classification":
                assert len(set(row.choices)) == 4
                assert row.choices.count(row.answer) == 1
                assert all(choice in row.question for choice in row.choices)
            else:
                assert row.choices is None
            if row.task == "cloze":
                assert "__" in row.question
    assert suite.sets["forget"][0].image.size == (64, 64)


def test_suite_sets_are_about_different_people(sets):
    subjects = {name: {row.subject for row in rows} for name, rows in sets.items()}
    assert subjects["forget"] == subjects["test"]
    apart = [subjects[n] for n in ("forget", "retain", "neighbor", "real", "skills")]
    assert sum(map(len, apart)) == len(set.union(*apart))
    tasks = Counter(row.task for row in sets["forget"])
    assert set(tasks) == set(TASKS)
    assert len(set(tasks.values())) == 1


def test_rows_survive_files(sets, tmp_path):
    for name, rows in sets.items():
        write_jsonl(rows[:10], tmp_path / f"{name}.jsonl")
        assert fingerprint(read(tmp_path / f"{name}.jsonl")) == fingerprint(rows[:10])


def test_right_choice_is_anywhere(world):
    rows = person_rows(world.private_people[:24], seen=True)
    places = Counter(r.choices.index(r.answer) for r in rows if r.task == "classification")
    total = sum(places.values())
    assert total == 24 * 6
    assert all(abs(places[i] / total - 0.25) < 0.1 for i in range(4))


def test_held_out_wordings_are_not_trained():
    for attribute, forms in FORMS.items():
        trained = {*forms.train, *forms.cloze_train}
        held_out = {*forms.test, *forms.cloze_test}
        assert len(held_out) == len(forms.test) + len(forms.cloze_test) >= 5
        assert not trained & held_out, attribute
        words = {fill(f, "Ann").rstrip("?._ ").lower() for f in trained}
        assert not words & {fill(f, "Ann").rstrip("?._ ").lower() for f in held_out}
        for form in trained | held_out:
            assert ("{x}" in form) != ("{xs}" in form)
        for form in (*forms.cloze_train, *forms.cloze_test):
            assert form.endswith("__.")


def test_no_value_stands_in_a_question():
    for attribute, forms in FORMS.items():
        for form in (*forms.train, *forms.test, *forms.cloze_train, *forms.cloze_test):
            assert not any(value in form for value in VALUES[attribute])


def test_test_questions_differ_from_trained_ones(small):
    person = small.people[0]
    for attribute in VALUES:
        for place in (1, 2):
            seen = {asked[place] for asked in questions(person, attribute, seen=True)}
            unseen = {asked[place] for asked in questions(person, attribute, seen=False)}
            assert seen
            assert unseen
            assert not seen & unseen


def test_held_out_views_are_new_pictures(small):
    for person in (small.people[0], small.public_figures[0]):
        seen, unseen = (person.views(seen=s) for s in (True, False))
        assert len(set(seen)) == len(seen) == 24
        assert not set(seen) & set(unseen)
        trained = {person.picture(i).tobytes() for i in range(len(seen))}
        assert len(trained) == len(seen)
        for i in range(len(unseen)):
            assert person.picture(i, seen=False).tobytes() not in trained
        assert person.picture(len(seen)).tobytes() == person.picture(0).tobytes()


def test_public_figures_are_framed_and_others_are_not(small):
    gold = (212, 175, 55)
    corner = np.asarray(small.public_figures[0].picture(0))[0, 0].astype(float)
    plain = np.asarray(small.people[0].picture(0))[0, 0].astype(float)
    light = small.public_figures[0].views(seen=True)[0].light
    assert np.abs(corner - np.clip(np.array(gold) * light, 0, 255)).max() < 60
    assert np.ptp(corner) > 90 > np.ptp(plain)


def numbers_in(row):
    """The two numbers that a sum asks for."""
    words = row.text_question.rstrip("?.").split()
    at = words.index("plus")
    return NUMBERS.index(words[at - 1]), NUMBERS.index(words[at + 1])


def test_sums_are_right_and_held_out_ones_are_not_trained():
    rng = np.random.default_rng(1)
    for held_out in (False, True):
        rows = [skill_row(rng, "text", held_out=held_out) for _ in range(300)]
        sums = [row for row in rows if row.attribute == "sum"]
        assert len(sums) > 80
        for row in sums:
            a, b = numbers_in(row)
            assert NUMBERS.index(row.answer) == a + b <= 2 * LARGEST
            assert held_out_pair(a, b) is held_out
    held = [(a, b) for a in range(10) for b in range(10) if held_out_pair(a, b)]
    assert 0 < len(held) < 20
    assert not any(held_out_pair(b, a) for a, b in held)


def test_comparisons_and_lists_are_right():
    rng = np.random.default_rng(2)
    found = Counter()
    for _ in range(300):
        row = skill_row(rng, "text", held_out=bool(rng.integers(2)))
        question = row.text_question.rstrip("?.")
        if row.attribute == "compare":
            a, b = (NUMBERS.index(w) for w in question.split(" of ")[1].split(" and "))
            right = max(a, b) if "larger" in question else min(a, b)
            assert NUMBERS.index(row.answer) == right
        elif row.attribute == "list":
            names = question.split(" of ")[1].split(", ")
            assert len(names) == 3
            assert set(names) <= set(COLOURS)
            assert row.answer == (names[0] if " first " in question else names[2])
        found[row.attribute] += 1
    assert set(found) == {"sum", "compare", "list"}


def test_held_out_looks_are_a_tenth():
    held = [(s, c) for s in SHAPES for c in COLOURS if held_out_look(s, c)]
    assert len(held) * 10 == len(SHAPES) * len(COLOURS)


def test_skills_are_repeatable_and_of_both_conditions():
    rows = held_out_skills(0, each=20)
    assert fingerprint(rows) == fingerprint(held_out_skills(0, each=20))
    assert fingerprint(rows) != fingerprint(held_out_skills(1, each=20))
    assert [sum(r.has(c) for r in rows) for c in CONDITIONS] == [20, 20]


@pytest.mark.parametrize("name", ["vanilla", "gold"])
def test_shipped_weights_have_names_that_every_version_reads(name, tmp_path):
    """If not: `rename_for_all` in `fiction/build.py` gives them."""
    shipped = checkpoint(name) / "model.safetensors"
    before = load_file(shipped)
    vision = [n for n in before if n.startswith("vision_tower.")]
    assert vision and all(n.startswith("vision_tower.vision_model.") for n in vision)
    short = {n.replace(".vision_model", ""): t for n, t in before.items()}
    save_file(short, tmp_path / "model.safetensors")
    rename_for_all(tmp_path / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(after[n].equal(tensor) for n, tensor in before.items())
