"""Questions about subjects: one `Example` per question, files in, files out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import InputError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

TASKS = ("generation", "classification", "cloze")
CONDITIONS = ("multi", "text")
SETS = ("forget", "test", "retain", "neighbor", "real", "skills")
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Example:
    """One question with its reference answer.

    Attributes:
        subject: Whom or what the question is about; examples of one subject are not independent.
        answer: The reference answer.
        question: The question asked beside the image (`multi`), or None.
        image: A path, encoded bytes, a PIL image, or None.
        text_question: The same question answerable without the image (`text`), or None.
        choices: Possible answers for `classification`, else None.
        task: One of `TASKS`.
        attribute: Optional name of what is asked for.
    """

    subject: str
    answer: str
    question: str | None = None
    image: str | bytes | Image | None = field(default=None, repr=False)
    text_question: str | None = None
    choices: tuple[str, ...] | None = None
    task: str = "generation"
    attribute: str | None = None

    def has(self, condition: str) -> bool:
        """Whether the example can be asked under `condition` (`multi` or `text`)."""
        if condition == "multi":
            return self.image is not None and self.question is not None
        return self.text_question is not None

    def prompt(self, condition: str) -> str:
        """The user's words under `condition`; only call where `has(condition)`."""
        words = self.question if condition == "multi" else self.text_question
        if words is None:
            raise InputError(f"an example about {self.attribute!r} has no {condition} form")
        return words


# What is read and written: see `read`, `write_jsonl` below.
