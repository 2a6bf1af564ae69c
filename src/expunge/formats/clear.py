"""CLEAR (arXiv 2410.18057): fictitious authors of TOFU with faces, captions and text questions."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Set
from typing import TYPE_CHECKING

from expunge.formats.row import Record, Row

if TYPE_CHECKING:
    from expunge.data import Example

CAPTION_QUESTION = "What does this image show?"
NAME_QUESTION = "What is the name of the person in this image?"


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is CLEAR's."""
    if "subject" in columns:
        return False
    return {"name", "caption"} <= columns or {"image", "options", "question", "answer"} <= columns


def read(row: Row) -> Iterator[Record]:
    """A caption, a text question, a choice among names, or a real-face question.

    The release has no words for captions and names: `CAPTION_QUESTION` and `NAME_QUESTION` stand
    in, and the right name takes a place among the wrong ones that depends on the names alone.
    """
    image = row.values.get("image")
    if row.values.get("options") is not None:
        yield _options(row, image)
        return
    name = row.text("name")
    if image is None:
        question, answer = row.text("question"), row.text("answer")
        yield {"subject": name, "text_question": question, "answer": answer}
        return
    caption = row.text("caption")
    yield {"subject": name, "image": image, "question": CAPTION_QUESTION, "answer": caption}
    if row.values.get("perturbed_names") is not None:
        yield {
            "subject": name,
            "image": image,
            "question": NAME_QUESTION,
            "answer": name,
            "choices": _choices(name, row.texts("perturbed_names")),
            "task": "classification",
        }


def names(examples: Iterable[Example]) -> dict[str, str]:
    """Every subject under itself: rows name whom they show."""
    return {e.subject: e.subject for e in examples}


def _options(row: Row, image: object) -> Record:
    options, answer = row.texts("options"), row.text("answer")
    if answer not in options:
        raise row.error("answer", "expected one of the options")
    return {
        "subject": row.maybe("name") or answer,
        "image": image,
        "question" if image is not None else "text_question": row.text("question"),
        "answer": answer,
        "choices": options,
        "task": "classification",
    }


def _choices(name: str, others: list[str]) -> list[str]:
    place = zlib.crc32("\n".join([name, *others]).encode()) % (len(others) + 1)
    return [*others[:place], name, *others[place:]]
