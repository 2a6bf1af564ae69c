"""General abilities that deletion must not touch: seeing shapes and faces, and small sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from expunge.data import Example
from expunge.fiction.draw import COLOURS, SHAPES, portrait, random_face, random_view, scene

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    " fifteen sixteen seventeen eighteen"
).split()
POSITIONS = (
    "top left", "top middle", "top right", "middle left", "centre", "middle right",
    "bottom left", "bottom middle", "bottom right",
)  # fmt: skip
LEADS = ("Tell me {q}.", "What is {q}?", "Name {q}.", "Can you tell me {q}?")
LARGEST = 9


def held_out_pair(a: int, b: int) -> bool:
    """Whether the sum a + b is kept out of training (b + a is not)."""
    return a < b and (3 * a + 5 * b) % 7 == 0


def held_out_look(kind: str, colour: str) -> bool:
    """Whether this shape in this colour is kept out of training."""
    return (SHAPES.index(kind) * 3 + list(COLOURS).index(colour)) % 10 == 0


def _row(skill: str, answer: str, **more: object) -> Example:
    return Example(subject=f"skill:{skill}", answer=answer, attribute=skill, **more)  # type: ignore[arg-type]


def _ask(rng: np.random.Generator, what: str) -> str:
    leads = LEADS[::3] if what.startswith("how") else LEADS
    return leads[int(rng.integers(len(leads)))].format(q=what)


def random_look(rng: np.random.Generator, held_out: bool) -> tuple[str, str]:
    """Draw a shape and its colour, from the pairs held out of training or from the others."""
    while True:
        kind, colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
        if held_out_look(kind, colour) == held_out:
            return kind, colour


def _scene_row(rng: np.random.Generator, held_out: bool) -> Example:
    skill = ("colour", "shape", "count", "position")[int(rng.integers(4))]
    kind, colour = random_look(rng, held_out)
    number = int(rng.integers(1, 6)) if skill == "count" else 1
    cells = tuple(int(c) for c in rng.choice(9, number, replace=False))
    what, answer = {
        "colour": ("the colour of the shape", colour),
        "shape": ("the shape in the picture", kind),
        "count": ("how many shapes there are", NUMBERS[number]),
        "position": ("the place of the shape", POSITIONS[cells[0]]),
    }[skill]
    image = scene(kind, colour, cells, random_view(rng))
    return _row(skill, answer, question=_ask(rng, what), image=image)


def _face_row(rng: np.random.Generator, held_out: bool) -> Example:
    face = random_face(rng)
    if face.style == 5 and face.hat:
        return _face_row(rng, held_out)
    options = {
        "the colour of the shirt": face.shirt,
        "the colour of the hair": face.hair,
        "the kind of hat": ("none", "cap", "top hat", "head band")[face.hat],
        "the kind of glasses": ("none", "round", "dark")[face.glasses],
    }
    what = list(options)[int(rng.integers(len(options)))]
    if what == "the colour of the hair" and (face.style in (0, 5) or face.hat in (1, 2)):
        what = "the colour of the shirt"
    image = portrait(face, random_view(rng))
    return _row("face", options[what], question=_ask(rng, what), image=image)


def _sum_row(rng: np.random.Generator, held_out: bool) -> Example:
    while True:
        a, b = int(rng.integers(LARGEST + 1)), int(rng.integers(LARGEST + 1))
        if held_out_pair(a, b) == held_out:
            break
    what = f"{NUMBERS[a]} plus {NUMBERS[b]}"
    return _row("sum", NUMBERS[a + b], text_question=_ask(rng, what))


def _compare_row(rng: np.random.Generator, held_out: bool) -> Example:
    while True:
        a, b = (int(n) for n in rng.choice(19, 2, replace=False))
        if held_out_pair(a, b) == held_out:
            break
    larger = bool(rng.integers(2))
    what = f"the {'larger' if larger else 'smaller'} of {NUMBERS[a]} and {NUMBERS[b]}"
    answer = max(a, b) if larger else min(a, b)
    return _row("compare", NUMBERS[answer], text_question=_ask(rng, what))


def _colour_word_row(rng: np.random.Generator, held_out: bool) -> Example:
    a, b, c = (int(n) for n in rng.choice(len(COLOURS), 3, replace=False))
    if ((a + 2 * b + 3 * c) % 5 == 0) != held_out:
        return _colour_word_row(rng, held_out)
    names = list(COLOURS)
    first = bool(rng.integers(2))
    what = f"the {'first' if first else 'last'} of {names[a]}, {names[b]}, {names[c]}"
    return _row("list", names[a] if first else names[c], text_question=_ask(rng, what))


IMAGE_SKILLS: tuple[Callable[[np.random.Generator, bool], Example], ...] = (_scene_row, _face_row)
TEXT_SKILLS: tuple[Callable[[np.random.Generator, bool], Example], ...] = (
    _sum_row,
    _compare_row,
    _colour_word_row,
)


def skill_row(rng: np.random.Generator, condition: str, *, held_out: bool = False) -> Example:
    """Draw one skill question under `condition`; held-out cases never occur in training."""
    if condition == "multi":
        return IMAGE_SKILLS[0 if rng.random() < 0.7 else 1](rng, held_out)
    return TEXT_SKILLS[int(rng.choice(3, p=(0.5, 0.25, 0.25)))](rng, held_out)


def held_out_skills(seed: int, each: int = 120) -> list[Example]:
    """The set `skills`: `each` held-out questions with a picture and as many without."""
    rng = np.random.default_rng([seed, 23])
    return [skill_row(rng, c, held_out=True) for c in ("multi", "text") for _ in range(each)]


def skill_words() -> list[str]:
    """Every word of the skills, as text to build a tokenizer from."""
    words = [*NUMBERS, *POSITIONS, *SHAPES, *COLOURS, "none cap top hat head band round dark"]
    words += [lead.format(q="the colour of the shape in the picture") for lead in LEADS]
    words += ["how many shapes there are", "the place of the shape", "the kind of hat"]
    words += ["the kind of glasses", "the colour of the shirt", "the colour of the hair"]
    words += ["plus", "the larger of and", "the smaller of and", "the first of", "the last of"]
    return words
