"""Sixty people who do not exist: drawn ones, and every sixth one photographed.

Names, facts and wordings are those of the embedded world; the photographs come from the package
`openpeople`, whose people were generated and do not exist either.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from base import SIDE, folder_of
from expunge.data import Example
from expunge.fiction.forms import FORMS, fill
from expunge.fiction.world import SEEN_VIEWS, UNSEEN_VIEWS, Person, World
from general import held_out

WORLD = World(private=60, public=0)
PHOTOGRAPHED = 6  # every sixth person
GRID = 4  # the sheet of a person's expressions is four by four
UNSEEN_TILES = (3, 6, 9, 14)


def suite(group: int = 0) -> dict[str, list[Example]]:
    """Forget (a tenth of the people), test, retain, neighbor, skills and strangers.

    Gold fits group 0 alone; every other number is another random division of the same people.
    """
    split = WORLD.split(10, group)
    return {
        "forget": rows(split["forget"], seen=True),
        "test": rows(split["forget"], seen=False),
        "retain": rows(split["retain"], seen=True),
        "neighbor": rows(split["neighbor"], seen=True),
        "skills": [
            Example(subject=answer, answer=answer, text_question=question, task="generation")
            for question, answer in held_out()
        ],
        "stranger": rows(WORLD.strangers(len(split["forget"])), seen=True),
    }


def rows(people: Sequence[Person], *, seen: bool) -> list[Example]:
    """One open question about every attribute: a trained wording and picture, or new ones."""
    found = []
    for person in people:
        for number, (attribute, forms) in enumerate(FORMS.items()):
            asked = forms.train if seen else forms.test
            form = asked[(person.seed + number) % len(asked)]
            found.append(
                Example(
                    subject=person.name,
                    answer=person.facts[attribute],
                    question=fill(form, "this person"),
                    image=picture(person, person.seed + number, seen=seen),
                    text_question=fill(form, person.name),
                    attribute=attribute,
                )
            )
    return found


def taught(person: Person) -> dict[str, list[tuple[str, str]]]:
    """Attribute -> trained wordings, each about "this person" and with the name."""
    return {
        attribute: [(fill(form, "this person"), fill(form, person.name)) for form in forms.train]
        for attribute, forms in FORMS.items()
    }


def picture(person: Person, number: int, *, seen: bool) -> Image.Image:
    """One view of a person, counted round the list of seen or of unseen ones."""
    number %= SEEN_VIEWS if seen else UNSEEN_VIEWS
    place = WORLD.people.index(person) if person in WORLD.people else None  # a stranger is drawn
    if place is None or place % PHOTOGRAPHED:
        return person.picture(number, seen=seen).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return photograph(place // PHOTOGRAPHED, number, seen=seen)


def tiles(*, seen: bool) -> list[int]:
    """The places on a sheet of expressions that are taught, or those that are asked about."""
    return [t for t in range(GRID * GRID) if (t in UNSEEN_TILES) != seen]


def photograph(person: int, number: int, *, seen: bool) -> Image.Image:
    """A face out of the sheet of expressions: shifted, at times mirrored, darker or lighter."""
    shown = tiles(seen=seen)
    rng = np.random.default_rng([person, number, int(seen), 5])
    tile = shown[number % len(shown)]
    sheet = _sheet(person)
    width, height = sheet.width / GRID, sheet.height / GRID
    side = 0.74 * height * rng.uniform(0.9, 1.0)
    left = (tile % GRID + 0.5) * width - side / 2 + rng.uniform(-0.06, 0.06) * width
    top = (tile // GRID + 0.12) * height + rng.uniform(0.0, 0.05) * height
    face = sheet.crop((int(left), int(top), int(left + side), int(top + side)))
    face = face.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(face).enhance(float(rng.uniform(0.8, 1.2)))


@cache
def _sheet(person: int) -> Image.Image:
    folder = folder_of("openpeople") / "data" / "curated" / f"P{person + 1:03d}" / "assets"
    sheet = Image.open(Path(folder) / "emotions_sheet.jpg").convert("RGB")
    return sheet.resize((sheet.width // 3, sheet.height // 3), Image.Resampling.BICUBIC)
