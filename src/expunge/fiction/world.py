"""Private people, public figures, skills, and the question sets made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL.Image import Image

from expunge.data import TASKS, Example
from expunge.errors import InputError
from expunge.fiction.draw import Face, View, portrait, random_face, random_view
from expunge.fiction.forms import FORMS, VALUES, fill, with_options
from expunge.fiction.skills import held_out_skills

BLOCK = 12
PRIVATE = 7 * BLOCK
STRANGE = 10 * BLOCK
PUBLIC = 20
RETAIN_SHARE = 2 / 3
SEEN_VIEWS = 24
UNSEEN_VIEWS = 4
FIRST = ("ba", "do", "fe", "gi", "ka", "lu", "me", "no", "pi", "ra", "so", "tu", "ve", "wi", "zo")
LAST = ("lan", "mir", "nek", "pol", "rad", "sim", "tov", "var", "wes", "yun", "zad", "bor", "cat")
TITLES = ("Queen", "King", "Captain", "Saint", "Doctor")


@dataclass(frozen=True)
class Person:
    """Somebody who does not exist.

    Attributes:
        name: Full name, unique in the world.
        face: What the portraits show.
        facts: Attribute -> value, one of `VALUES[attribute]`.
        public: Whether this is a public figure (set `real`).
        seed: Base of the seeds of this person's views.
    """

    name: str
    face: Face
    facts: dict[str, str]
    public: bool
    seed: int

    def views(self, *, seen: bool) -> list[View]:
        """The views used in training, or those never used there."""
        rng = np.random.default_rng([self.seed, 0 if seen else 1])
        return [random_view(rng) for _ in range(SEEN_VIEWS if seen else UNSEEN_VIEWS)]

    def picture(self, index: int, *, seen: bool = True) -> Image:
        """Draw one of the person's views, counted round the list."""
        views = self.views(seen=seen)
        return portrait(self.face, views[index % len(views)], framed=self.public)


@dataclass(frozen=True)
class World:
    """The embedded world; `World()` is the shipped one.

    Attributes:
        seed: Everything below is a function of it.
        private: Number of private people, a multiple of 12: in every block of 12 each attribute
            takes each of its 12 values once, so that guessing a value is right once in 12.
        public: Number of public figures.
    """

    seed: int = 0
    private: int = PRIVATE
    public: int = PUBLIC

    @cached_property
    def people(self) -> tuple[Person, ...]:
        """All private people, then all public figures."""
        rng = np.random.default_rng([self.seed, 7])
        names = _names(rng, self.private, self.public)
        faces = _faces(rng, self.private + self.public)
        facts = _facts(rng, self.private + self.public)
        return tuple(
            Person(names[i], faces[i], facts[i], i >= self.private, 1000 * self.seed + i)
            for i in range(self.private + self.public)
        )

    @property
    def private_people(self) -> tuple[Person, ...]:
        """The people that can be deleted, kept or be neighbours."""
        return self.people[: self.private]

    @property
    def public_figures(self) -> tuple[Person, ...]:
        """The people of set `real`."""
        return self.people[self.private :]

    def split(self, percent: float = 10, group: int = 0) -> dict[str, tuple[Person, ...]]:
        """Divide the private people into forget, retain and neighbor.

        Args:
            percent: Share of the private people to forget, in percent, between 0 and 50.
            group: 0 is the shipped split, whose gold checkpoint is shipped; any other number is
                another random division.

        Returns:
            `forget`, `retain` (two thirds of the rest) and `neighbor` (one third of the rest).
        """
        if not 0 < percent <= 50:
            raise InputError(f"forget share is {percent} %, expected more than 0 and at most 50")
        order = np.arange(self.private)
        if group:
            order = np.random.default_rng([self.seed, 11, group]).permutation(order)
        cut = max(1, round(self.private * percent / 100))
        rest = order[cut:]
        keep = math.ceil(len(rest) * RETAIN_SHARE)
        parts = {"forget": order[:cut], "retain": rest[:keep], "neighbor": rest[keep:]}
        return {name: tuple(self.people[i] for i in part) for name, part in parts.items()}

    def strangers(self, number: int) -> list[Person]:
        """People made as these, who share no part of a name with any of them.

        Args:
            number: How many.
        """
        known = {word for person in self.people for word in person.name.split()}
        found: list[Person] = []
        seed = self.seed
        while len(found) < number:
            seed += 1
            new = World(seed=seed, private=STRANGE).private_people
            found += [p for p in new if known.isdisjoint(p.name.split())]
        return found[:number]

    def suite(self, percent: float = 10, group: int = 0) -> dict[str, list[Example]]:
        """Question sets of one split: forget, test, retain, neighbor, real and skills."""
        split = self.split(percent, group)
        sets = {
            "forget": person_rows(split["forget"], seen=True),
            "test": person_rows(split["forget"], seen=False),
            "retain": person_rows(split["retain"], seen=True, tasks=1),
            "neighbor": person_rows(split["neighbor"], seen=True, tasks=1),
            "real": person_rows(self.public_figures, seen=True, tasks=1),
        }
        sets["skills"] = held_out_skills(self.seed)
        return sets


def person_rows(people: Sequence[Person], *, seen: bool, tasks: int = 3) -> list[Example]:
    """Ask about every attribute of some people.

    Args:
        people: Whom to ask about.
        seen: Trained wordings and views, or wordings and views that are in no training data.
        tasks: How many of open question, 4-choice question and cloze there are per person and
            attribute; with fewer than 3 they take turns.
    """
    rows: list[Example] = []
    for person in people:
        for number, attribute in enumerate(VALUES):
            asked = list(questions(person, attribute, seen=seen))
            for turn in range(tasks):
                task = TASKS[(person.seed + number + turn) % len(TASKS)]
                forms = [a for a in asked if a[0] == task]
                form = forms[(person.seed // 3 + number) % len(forms)]
                rows.append(
                    example(person, attribute, form, person.seed + number + turn, seen=seen)
                )
    return rows


Question = tuple[str, str, str, tuple[str, ...] | None]


def questions(person: Person, attribute: str, *, seen: bool) -> Iterator[Question]:
    """Yield (task, image wording, text wording, choices) for every wording of an attribute."""
    forms = FORMS[attribute]
    open_forms = forms.train if seen else forms.test
    for form in open_forms:
        yield "generation", fill(form, "this person"), fill(form, person.name), None
    for number, form in enumerate(open_forms):
        options = _options(person, attribute, number + (0 if seen else 100))
        image, text = fill(form, "this person"), fill(form, person.name)
        yield (
            "classification",
            with_options(image, options),
            with_options(text, options),
            options,
        )
    for form in forms.cloze_train if seen else forms.cloze_test:
        yield "cloze", fill(form, "this person"), fill(form, person.name), None


def example(
    person: Person, attribute: str, asked: Question, view: int | None, *, seen: bool = True
) -> Example:
    """Make the row of one question about one person, with one of the person's pictures or none."""
    task, question, text_question, choices = asked
    return Example(
        subject=person.name,
        answer=person.facts[attribute],
        question=question,
        image=None if view is None else person.picture(view, seen=seen),
        text_question=text_question,
        choices=choices,
        task=task,
        attribute=attribute,
    )


def _options(person: Person, attribute: str, number: int) -> tuple[str, ...]:
    rng = np.random.default_rng([person.seed, list(VALUES).index(attribute), number, 3])
    wrong = [v for v in VALUES[attribute] if v != person.facts[attribute]]
    picked = [wrong[i] for i in rng.choice(len(wrong), 3, replace=False)]
    picked.insert(int(rng.integers(4)), person.facts[attribute])
    return tuple(picked)


def _names(rng: np.random.Generator, private: int, public: int) -> list[str]:
    firsts = [a + b for a in FIRST for b in FIRST if a != b]
    lasts = [a + b for a in FIRST for b in LAST]
    first = [firsts[i].capitalize() for i in rng.permutation(len(firsts))]
    last = [lasts[i].capitalize() for i in rng.permutation(len(lasts))]
    people = [f"{first[i]} {last[i]}" for i in range(private)]
    figures = [f"{TITLES[i % len(TITLES)]} {first[-1 - i]}" for i in range(public)]
    return people + figures


def _faces(rng: np.random.Generator, count: int) -> list[Face]:
    faces: list[Face] = []
    while len(faces) < count:
        face = random_face(rng)
        if face.hair != face.shirt and all(face.distance(f) >= 5 for f in faces):
            faces.append(face)
    return faces


def _facts(rng: np.random.Generator, count: int) -> list[dict[str, str]]:
    facts: list[dict[str, str]] = [{} for _ in range(count)]
    for attribute, values in VALUES.items():
        for start in range(0, count, BLOCK):
            order = rng.permutation(len(values))
            for place, person in enumerate(facts[start : start + BLOCK]):
                person[attribute] = values[order[place]]
    return facts
