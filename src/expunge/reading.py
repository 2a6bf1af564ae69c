"""The question files that the settings name: which part of each, and the text forms it lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from expunge import data
from expunge.config import RunConfig
from expunge.data import Example, Suite
from expunge.errors import InputError
from expunge.formats import Format

MARK = "::"


def read_suite(config: RunConfig) -> Suite:
    """Read every question file that the configuration names.

    A file is given as its path, or as ``PATH::SPLIT`` for a part of it (see `part_of`). Image
    questions of a file without text questions get a text form where that is safe (see
    `with_text_forms`); the suite's remarks tell how many did.

    Raises:
        InputError: As `data.read`.
    """
    read: dict[str, tuple[Format, list[Example]]] = {}
    for name in data.GIVEN:
        given = getattr(config, name)
        if given:
            path, split = part_of(given)
            read[name] = data.read_as(path, format=config.data_format, split=split)
    names = _names(read)
    remarks: list[str] = []
    sets: dict[str, list[Example]] = {}
    for name, (_, examples) in read.items():
        sets[name], told = with_text_forms(examples, names[name])
        remarks += [f"{name}: {each}" for each in told]
    return replace(Suite.of(**sets), remarks=tuple(remarks))


def _names(read: Mapping[str, tuple[Format, list[Example]]]) -> dict[str, dict[str, str]]:
    """For each file its subjects' names, without those that several subjects have."""
    found = {n: chosen.names(rows) if chosen.names else {} for n, (chosen, rows) in read.items()}
    owners: dict[tuple[str, str], set[str]] = {}
    for file, names in found.items():
        for subject, name in names.items():
            owners.setdefault((read[file][0].name, name), set()).add(subject)
    return {
        file: {s: name for s, name in names.items() if len(owners[read[file][0].name, name]) == 1}
        for file, names in found.items()
    }


def part_of(given: str) -> tuple[str, str | None]:
    """The path and the split of ``PATH::SPLIT``, as `data.read` takes them.

    Whatever exists under the whole name is meant by it, also where that holds ``::``.

    Args:
        given: A file, a folder or an id on a hub, and behind ``::`` the configuration, split,
            sub-folder or list of subjects to read.

    Raises:
        InputError: Nothing stands before or behind the ``::``.
    """
    if MARK not in given or Path(given).expanduser().exists():
        return given, None
    path, _, split = given.rpartition(MARK)
    if not path or not split:
        raise InputError(
            f"{given}: expected PATH or PATH::SPLIT, found nothing "
            f"{'behind' if path else 'before'} the {MARK}"
        )
    return path, split


def with_text_forms(
    examples: Sequence[Example], names: Mapping[str, str]
) -> tuple[list[Example], list[str]]:
    """Ask in text, by the subject's name, what a file asks beside the picture alone.

    A file in which any row has a text question is left as it is: whoever wrote it has chosen what
    is asked in text. In any other the name takes the place of the words that point at the picture
    ("this person"). Nothing is made of a question that asks for the name, that points at nobody or
    that still needs the picture, nor where the name is not known, as of a subject that is an id.

    Args:
        examples: The rows of one file.
        names: Subject to name. As `read_suite` gives them: of MLLMU-Bench's training rows from the
            answer to the question for the name; of CLEAR and of plain rows the subject itself, in
            plain rows if it is two or more capitalised words (`formats.wording.is_name`).

    Returns:
        The examples in the same order, and what to say about it: a sentence, or none where the
        file was left as it is.
    """
    if any(e.has("text") for e in examples):
        return list(examples), []
    turned, failed = data.text_only(examples, names)
    nameless = sum(examples[i].subject not in names for i in failed)
    reasons = {
        "about a subject whose name is not known, or is another's too": nameless,
        "asking for the name or not pointing at the subject": len(failed) - nameless,
    }
    made, total = len(examples) - len(failed), len(examples)
    told = f"{made} of {total} image questions are also asked in text, by the subject's name"
    why = "; ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return turned, [f"{told} (not so: {why})." if why else f"{told}."]
