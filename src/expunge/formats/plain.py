"""The package's own schema: one row per question, every field named as in `Example`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from expunge.errors import unknown
from expunge.formats.row import Record, Row
from expunge.formats.wording import is_name

if TYPE_CHECKING:
    from expunge.data import Example

FIELDS = (
    "subject",
    "answer",
    "question",
    "image",
    "text_question",
    "choices",
    "task",
    "attribute",
    "letters",
)
_SPECIAL = ("image", "choices", "task", "subject", "answer", "letters")


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns names a subject and an answer."""
    return {"subject", "answer"} <= columns


def read(row: Row) -> Iterator[Record]:
    """Pass the row on; a field outside `FIELDS` is an error."""
    row.only(FIELDS)
    yield dict(row.values)


def names(examples: Iterable[Example]) -> dict[str, str]:
    """The subjects that are names by themselves, as `is_name` has it, each under itself."""
    return {e.subject: e.subject for e in examples if is_name(e.subject)}


def checked(row: Row, record: Record, folder: Path | None, tasks: Sequence[str]) -> Record:
    """The record with every field present and valid.

    Args:
        row: Where the record came from, for errors.
        record: Values under names of `FIELDS`.
        folder: Where relative image paths start; None for rows of a hub, which has no folder here.
        tasks: The tasks there are.

    Returns:
        The arguments of one `Example`.

    Raises:
        InputError: A field is missing, of the wrong type or inconsistent with another.
    """
    fields = replace(row, values=record, prefix="")
    if record.get("subject") is None:
        problem = "missing or null; name its column by subject_field, or give the format"
        raise fields.error("subject", problem)
    task = fields.maybe("task") or "generation"
    if task not in tasks:
        raise fields.error("task", str(unknown("task", task, tasks)))
    found: Record = {name: fields.maybe(name) for name in FIELDS if name not in _SPECIAL}
    found |= {"subject": fields.text("subject"), "answer": fields.text("answer"), "task": task}
    found |= {"image": _image(fields, folder), "choices": _choices(fields, task)}
    found["letters"] = _letters(fields, found["choices"])
    seen = found["image"] is not None and found["question"] is not None
    if not seen and found["text_question"] is None:
        missing = "text_question" if found["question"] is None else "image"
        problem = "missing; a row needs a question with an image, or a text_question"
        raise fields.error(missing, problem)
    return found


def _choices(fields: Row, task: str) -> tuple[str, ...] | None:
    if fields.values.get("choices") is None:
        if task == "classification":
            raise fields.error("choices", "missing; the task classification needs them")
        return None
    choices = tuple(fields.texts("choices"))
    if task != "classification":
        raise fields.error("choices", f"expected none for the task {task}")
    if len(choices) < 2:
        raise fields.error("choices", f"expected at least 2, found {len(choices)}")
    if fields.text("answer") not in choices:
        raise fields.error("answer", "expected one of the choices")
    return choices


def _letters(fields: Row, choices: tuple[str, ...] | None) -> str | None:
    letters = fields.maybe("letters")
    if letters is not None and (
        len(letters) != len(choices or ())
        or len(set(letters) & set(ascii_uppercase)) < len(letters)
    ):
        problem = f"expected {len(choices or ())} capital letters that differ, one for each choice"
        raise fields.error("letters", problem)
    return letters


def _image(fields: Row, folder: Path | None) -> str | bytes | None:
    value = fields.values.get("image")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
        if value is None:
            raise fields.error("image", "expected bytes or path in the object, found neither")
    if value is None or (isinstance(value, bytes) and value):
        return value
    if not isinstance(value, str) or not value.strip():
        kind = type(value).__name__ if value else "nothing"
        raise fields.error("image", f"expected a path or encoded bytes, found {kind}")
    if folder is None and not (os.path.isabs(value) and os.path.isfile(value)):
        raise fields.error(
            "image",
            f"the hub's row names {value!r}, a path that leads nowhere on this machine; download "
            "the data set with its images and give the folder or the file in it",
        )
    return os.path.normpath((folder or Path()) / value)
