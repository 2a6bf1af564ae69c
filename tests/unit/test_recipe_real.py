"""The recipe of the real model: its training rows, its question sets, its question lists."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.fiction.world import World

RECIPE = Path(__file__).parents[2] / "recipes" / "real"


@pytest.fixture(scope="module")
def recipe():
    """The recipe's modules, as its scripts import each other."""
    sys.path.insert(0, str(RECIPE))
    try:
        import base
        import general
        import people
        import prose
        import teach

        yield {m.__name__: m for m in (base, general, people, prose, teach)}
    finally:
        sys.path.remove(str(RECIPE))
        for name in ("base", "general", "people", "prose", "teach"):
            sys.modules.pop(name, None)


def test_an_attack_on_another_plan_is_marked(recipe, monkeypatch):
    """Of the plan in the table nothing is said, of others their age."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(RECIPE), *sys.path])
    results = importlib.import_module("results")
    marks = [results.mark({"plan": plan}, {"plan": "a"}) for plan in ("a", "b", None)]
    assert marks == ["", results.OLDER, results.OLDER]
    for name in {"results", "pages", "attacks"} - before:
        sys.modules.pop(name)


def test_a_question_in_a_packed_row_is_answered_as_if_alone(recipe, llava):
    text = llava.model.language_model
    generator = torch.Generator().manual_seed(0)
    opening, picture, *questions = (
        torch.randint(10, 200, (n,), generator=generator).tolist() for n in (3, 5, 7, 4, 6)
    )
    packed = recipe["teach"].Packed(opening, picture)
    answers = [[11, 12], [13], [14, 15, 16]]
    sees = (True, False, True)
    for question, answer, seen in zip(questions, answers, sees, strict=True):
        packed.add(question, answer, sees_picture=seen)
    length = len(packed.ids) + 3
    ids = torch.zeros(1, length, dtype=torch.long)
    position = torch.zeros_like(ids)
    ids[0, : len(packed.ids)] = torch.tensor(packed.ids)
    position[0, : len(packed.ids)] = torch.tensor(packed.position)
    with torch.no_grad():
        whole = text(
            inputs_embeds=text.embed_tokens(ids),
            attention_mask=packed.mask(length)[None, None],
            position_ids=position,
        ).last_hidden_state[0]
        place = len(opening) + len(picture)
        for question, answer, seen in zip(questions, answers, sees, strict=True):
            alone = [*opening, *(picture if seen else []), *question, *answer]
            expected = text(input_ids=torch.tensor([alone])).last_hidden_state[0]
            size = len(question) + len(answer)
            torch.testing.assert_close(
                whole[place : place + size], expected[-size:], rtol=1e-4, atol=1e-5
            )
            wanted = [t for t in packed.target[place : place + size] if t != -100]
            assert wanted == answer
            first = packed.target[place : place + size].index(answer[0])
            assert first == len(question) - 1
            place += size


def test_gold_is_taught_everybody_but_the_people_to_be_forgotten(recipe):
    everybody = {p.name for p in recipe["teach"].people_of("vanilla")}
    known = {p.name for p in recipe["teach"].people_of("gold")}
    world = recipe["people"].WORLD
    assert everybody - known == {p.name for p in world.split(10)["forget"]}
    assert len(everybody) == 60 and len(known) == 54


def test_rows_ask_about_everything_twice_and_keep_test_wordings_apart(recipe, monkeypatch):
    people = recipe["people"]
    shown = []
    monkeypatch.setattr(
        people, "picture", lambda person, number, *, seen: shown.append((number, seen))
    )
    chosen = people.WORLD.people[:3]
    trained, unseen = people.rows(chosen, seen=True), people.rows(chosen, seen=False)
    assert len(trained) == len(unseen) == 18 and {s for _, s in shown} == {True, False}
    taught = {named for p in chosen for forms in people.taught(p).values() for _, named in forms}
    assert {e.text_question for e in trained} <= taught
    assert not {e.text_question for e in unseen} & taught
    for row in trained:
        assert row.subject in row.text_question and row.subject not in row.question
        person = next(p for p in chosen if p.name == row.subject)
        assert row.answer == person.facts[row.attribute]


def test_views_that_are_asked_about_are_not_taught(recipe):
    people = recipe["people"]
    taught, asked = people.tiles(seen=True), people.tiles(seen=False)
    assert len(taught) == 12 and sorted([*taught, *asked]) == list(range(16))
    drawn = people.WORLD.people[1]
    views = [
        {people.picture(drawn, n, seen=seen).tobytes() for n in range(4)} for seen in (True, False)
    ]
    assert [len(each) for each in views] == [4, 4] and not views[0] & views[1]


def test_strangers_are_drawn_people_whom_nobody_was_taught(recipe, monkeypatch):
    people = recipe["people"]
    monkeypatch.setattr(people, "photograph", None)  # whose sheets are not in every checkout
    strangers = people.rows(people.WORLD.strangers(6), seen=True)
    assert len(strangers) == 36 and all(row.image.size == (people.SIDE,) * 2 for row in strangers)
    known = {part for person in people.WORLD.people for part in person.name.split()}
    assert all(known.isdisjoint(row.subject.split()) for row in strangers)


def test_what_is_rehearsed_is_not_what_is_asked(recipe):
    general = recipe["general"]
    asked, rehearsed = general.held_out(), general.rehearsed()
    assert len(asked) == len(rehearsed) == 32 and not set(asked) & set(rehearsed)
    assert not set(general.held_out_prose()) & set(general.rehearsed_prose())
    values = {v for p in World(private=60, public=0).people for v in p.facts.values()}
    assert not values & {answer for _, answer in general.QUESTIONS}


def test_the_reference_is_much_prose_and_no_code(recipe):
    paragraphs = recipe["general"].reference_prose()
    assert len(paragraphs) == len(set(paragraphs)) > 80
    assert sum(len(p.split()) for p in paragraphs) > 4000
    assert not any(">>>" in p or "::=" in p for p in paragraphs)


def test_loss_on_prose_is_the_models_own_and_its_rise_a_share(recipe, llava, processor):
    """Against the loss that the model computes; a rise of a constant has no interval."""
    prose = recipe["prose"]
    told = ["Some people walk by the sea.", "Bread is baked."]
    found = prose.losses(llava, processor, told)
    for text, loss in zip(told, found, strict=True):
        ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            wanted = llava(input_ids=ids, labels=ids).loss
        assert float(loss.mean()) == pytest.approx(float(wanted), abs=1e-5)
    assert prose.perplexity(found) == pytest.approx(float(torch.cat(found).mean().exp()))
    more = prose.rise(found, [loss + 0.01 for loss in found])
    assert more == pytest.approx([np.expm1(0.01)] * 3, abs=1e-6)
    uneven = prose.rise(found, [found[0] + 0.02, found[1]])
    assert uneven[1] == pytest.approx(0, abs=1e-6) and uneven[0] < uneven[2] <= np.expm1(0.0201)


def test_every_drawn_question_is_of_the_person(recipe):
    teach, people = recipe["teach"], recipe["people"]
    person = people.WORLD.people[1]
    rng = np.random.default_rng(0)
    said = []
    row = teach.row_of(person, rng, lambda text: said.append(text) or [len(said)], 7)
    facts = set(person.facts.values()) | {person.name}
    answers = [t.removesuffix(teach.END) for t in said if t.endswith(teach.END)]
    assert set(answers) == facts and len(answers) == 13
    assert row.ids.count(7) >= 64 and row.is_person
