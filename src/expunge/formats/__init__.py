"""Benchmark formats: each turns the rows of its release into records of the plain schema.

A format is one file and one row of `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import unknown
from expunge.formats import clear, fiubench, llava, mllmu, plain, tofu, umu
from expunge.formats.row import Record, Row

if TYPE_CHECKING:
    from expunge.data import Example

__all__ = ["FORMATS", "Format", "Record", "Row", "detect", "get"]


@dataclass(frozen=True)
class Format:
    """How one layout is recognised and read.

    Attributes:
        name: What `read(..., format=...)` takes.
        description: One line for the user.
        claims: Whether a row with these columns has this layout.
        read: One source row to records with the fields of `Example`; raises `InputError`.
        subset: For releases that name their splits in a file of ids: the folder and a split give
            the test that keeps a row.
        lists: What such files are called.
        names: From the examples of a file, each subject that is known by name with the name to
            write into its questions; None where the rows hold no names.
    """

    name: str
    description: str
    claims: Callable[[Set[str]], bool]
    read: Callable[[Row], Iterable[Record]]
    subset: Callable[[Path, str], Callable[[Row], bool]] | None = None
    lists: str | None = None
    names: Callable[[Iterable[Example]], dict[str, str]] | None = None


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "plain",
            "one row per question, the package's own fields",
            plain.claims,
            plain.read,
            names=plain.names,
        ),
        Format(
            "mllmu",
            "MLLMU-Bench: training questions and the three evaluation tasks",
            mllmu.claims,
            mllmu.read,
            mllmu.subset,
            f"*{mllmu.IDS}",
            mllmu.names,
        ),
        Format("umu", "UMU-Bench: each question with and without the image", umu.claims, umu.read),
        Format(
            "clear",
            "CLEAR: faces, captions and TOFU questions",
            clear.claims,
            clear.read,
            names=clear.names,
        ),
        Format(
            "fiubench",
            "FIUBench: facial identities, splits from split.json",
            fiubench.claims,
            fiubench.read,
            fiubench.subset,
            fiubench.SPLITS,
        ),
        Format("tofu", "TOFU: fictitious authors, text only", tofu.claims, tofu.read),
        Format("llava", "LLaVA conversations of human and gpt turns", llava.claims, llava.read),
    )
}


def get(name: str) -> Format:
    """The format called `name`.

    Raises:
        InputError: There is none; the message lists those there are.
    """
    if name not in FORMATS:
        raise unknown("format", name, [*FORMATS, "auto"])
    return FORMATS[name]


def detect(columns: Set[str]) -> Format:
    """The first format that claims a row with these columns; else `plain`, which will say why."""
    return next((f for f in FORMATS.values() if f.claims(columns)), FORMATS["plain"])
