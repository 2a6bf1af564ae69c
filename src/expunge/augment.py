"""More questions about the forget subjects: what others are asked, answered by the model itself.

A forget set with few questions shows little of what a model does when it is asked about a subject.
Retain questions say what subjects are asked; put with another name or picture in the place of their
own, they ask the same of a forget subject, and what the model then says is what it knows.

Nor does a forget set show in what words somebody will ask. The same questions among other words,
about pictures seen from somewhat elsewhere (`among`), are about the same subject all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from expunge.data import CONDITIONS, Example
from expunge.evaluate import answer_length, generate
from expunge.formats.picture import cropped, load_image, turned
from expunge.formats.wording import named
from expunge.models import generates
from expunge.noise import babbled, words_of
from expunge.prompting import Prompter

NUMBER = 24
MOST = 1536
AMONG = 512
LONGEST = 12
CUT = 0.1
TURN = 12.0
LIGHT = 0.3


def asked_like(
    model: Any,
    prompter: Prompter,
    forget: Sequence[Example],
    retain: Sequence[Example],
    seed: int,
    batch_size: int = 64,
) -> list[Example]:
    """Ask about the forget subjects what retain subjects are asked.

    Args:
        model: The model, which answers; unchanged. One that cannot generate is asked nothing.
        prompter: How conversations are rendered.
        forget: Whom to ask about. A subject that has retain questions too is left out, since
            something about it must stay.
        retain: What to ask. A question counts where it has no choices and names its subject, or
            points at it in words that `formats.wording.named` knows. Names are put in only for
            subjects that are called so in `forget`.
        seed: Of the draw of questions and pictures.
        batch_size: Questions per forward pass.

    Returns:
        At most `NUMBER` questions about each subject and `MOST` in all, the same number about each,
        in none of whose forms `forget` asks. One answered differently in its two forms is two rows.
    """
    stay = {e.subject for e in retain}
    given: dict[str, list[Example]] = {}
    for example in forget:
        if example.subject not in stay:
            given.setdefault(example.subject, []).append(example)
    number = min(NUMBER, MOST // max(1, len(given)))
    if not (given and number and generates(model)):
        return []
    rng = np.random.default_rng([seed, 31])
    found: list[Example] = []
    for _, mine in sorted(given.items()):
        order = [retain[i] for i in rng.permutation(len(retain))]
        found += islice(_put(mine, order, rng), number)
    return self_answered(model, prompter, found, answer_length(prompter, retain), batch_size)


def self_answered(
    model: Any, prompter: Prompter, rows: Sequence[Example], length: int, batch_size: int = 64
) -> list[Example]:
    """The rows with what the model says to them; one answered differently in its forms is two.

    Args:
        model: A model that can generate; unchanged.
        prompter: How conversations are rendered.
        rows: The questions; their own answers are not looked at.
        length: Tokens of an answer at most.
        batch_size: Questions per forward pass.

    Returns:
        Without the forms to which the model says nothing.
    """
    said = [
        _answers(model, prompter, rows, c, max_new_tokens=length, batch_size=batch_size)
        for c in CONDITIONS
    ]
    return [e for row, *each in zip(rows, *said, strict=True) for e in _told(row, *each)]


def _put(
    mine: Sequence[Example], others: Sequence[Example], rng: np.random.Generator
) -> Iterator[Example]:
    """The questions of others about the subject of `mine`, in the forms that it has; unanswered."""
    pictured = [e.image for e in mine if e.has("multi")]
    subject = mine[0].subject
    called = any(subject in (e.text_question or e.question or "") for e in mine)
    seen = {e.question for e in mine} | {e.text_question for e in mine}
    for other in others:
        row = renamed(other, subject)
        if row is None or row.choices or (not called and subject in (row.question or "")):
            continue
        asked = row.question if pictured and row.question not in seen else None
        text = row.text_question if called and row.text_question not in seen else None
        if asked or text:
            seen |= {asked, text}
            image = pictured[int(rng.integers(len(pictured)))] if asked else None
            yield replace(row, question=asked, image=image, text_question=text)


def among(
    prompter: Prompter, rows: Sequence[Example], told: Sequence[Example], seed: int
) -> list[Example]:
    """Put other words before or behind questions, and look at their pictures from elsewhere.

    Args:
        prompter: Whose tokenizer gives random words, for every second question as likely as not.
        rows: The questions; of more than `AMONG` so many are drawn, since their pictures are held.
        told: Texts that the model said, of which pieces are put to the others.
        seed: Of the draw.

    Returns:
        The questions with one to `LONGEST` words or tokens more; of pictures up to `CUT` of every
        side is cut off, and they are turned by up to `TURN` degrees and lit by up to `LIGHT` more
        or less. Answers are as they were, though not all of these questions would be answered so.
    """
    rng = np.random.default_rng([seed, 37])
    words = list(words_of(prompter).values())
    texts = [text for row in told if (text := (row.text_question or "").split())]

    def more() -> str:
        number = int(rng.integers(1, LONGEST + 1))
        if not texts or rng.random() < 0.5:
            return babbled(words, number, rng)
        text = texts[int(rng.integers(len(texts)))]
        begin = int(rng.integers(max(1, len(text) - number)))
        return " ".join(text[begin : begin + number])

    def asked(text: str | None) -> str | None:
        if text is None:
            return None
        return f"{more()} {text}" if rng.random() < 0.5 else f"{text} {more()}"

    chosen = sorted(rng.permutation(len(rows))[:AMONG])
    return [
        replace(
            row,
            question=asked(row.question),
            text_question=asked(row.text_question),
            image=seen_from_elsewhere(row.image, rng),
        )
        for row in (rows[i] for i in chosen)
    ]


def seen_from_elsewhere(image: Any, rng: np.random.Generator) -> Any:
    """A picture somewhat cut, turned and lit otherwise; what is no picture is left as it is."""
    picture = None if image is None else load_image(image)
    if not isinstance(picture, Image.Image):
        return image
    left, right, top, bottom = rng.uniform(0, CUT, 4)
    seen = turned(cropped(picture, left, top, right, bottom), float(rng.uniform(-TURN, TURN)))
    return ImageEnhance.Brightness(seen).enhance(float(rng.uniform(1 - LIGHT, 1 + LIGHT)))


def renamed(row: Example, subject: str) -> Example | None:
    """A question about one subject as the same about another; None where it is not about one.

    The answer and the picture are still those of the first.
    """
    own, text, shown = row.subject, row.text_question, row.question
    pointed = None if shown is None else named(shown, subject)
    if pointed is None and own not in (text or "") and own not in (shown or ""):
        return None
    text = text.replace(own, subject) if text and own in text else pointed
    return replace(
        row, subject=subject, question=shown and shown.replace(own, subject), text_question=text
    )


def _answers(
    model: Any, prompter: Prompter, rows: Sequence[Example], condition: str, **options: Any
) -> list[str]:
    """What the model says to each row under a condition; nothing where it has no such form."""
    usable = [e for e in rows if e.has(condition)]
    said = iter(generate(model, prompter, usable, condition, **options))
    return [next(said) if e.has(condition) else "" for e in rows]


def _told(row: Example, shown: str, text: str) -> list[Example]:
    """A row with the answers to its two forms; without those that have none."""
    if shown == text:
        return [replace(row, answer=shown)] if shown else []
    apart = (
        replace(row, answer=shown, text_question=None),
        replace(row, answer=text, question=None, image=None),
    )
    return [e for e in apart if e.answer]
