"""UMU-Bench: the same knowledge asked with and without the image, as Python literals in strings."""

from __future__ import annotations

from collections.abc import Iterator, Set

from expunge.formats.row import Record, Row

TASKS = {"Classify": "classification", "Cloze": "cloze", "Generation": "generation"}
UNI, MULTI = "unimodal", "muitimodal"


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is UMU-Bench's."""
    return "ID" in columns and bool({"MM_QA", "UM_QA", *TASKS} - {"Generation"} & columns)


def read(row: Row) -> Iterator[Record]:
    """The training questions and the three tasks.

    A question and its partner of the same key become one record when their answers (and choices)
    agree, else one for each condition.
    """
    base = {"subject": row.text("ID"), "image": row.get("image")}
    present = [c for c in ("MM_QA", "UM_QA", *TASKS) if row.values.get(c) is not None]
    for column in present:
        row = row.parsed(column)
    multi = _training(row, "MM_QA") if "MM_QA" in present else {}
    text = _training(row, "UM_QA") if "UM_QA" in present else {}
    yield from _pair(base, "generation", multi, text)
    for column in present:
        if column in TASKS:
            task, both = TASKS[column], row.inner(column)
            multi, text = _items(both.inner(MULTI), task), _items(both.inner(UNI), task)
            yield from _pair(base, task, multi, text)


def _training(row: Row, column: str) -> dict[str, Record]:
    questions, answers = row.inner(column).inner("question"), row.inner(column).inner("answer")
    return {k: {"asked": questions.text(k), "answer": answers.text(k)} for k in questions.values}


def _items(row: Row, task: str) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for key in row.values:
        item = row.inner(key)
        entry: Record = {"asked": item.text("question"), "answer": item.text("answer")}
        if task == "classification":
            options = item.inner("options")
            letter = entry["answer"].split(".")[0].strip()
            if letter not in options.values:
                expected = ", ".join(options.values)
                raise item.error("answer", f"expected a letter among {expected}")
            entry["answer"] = options.text(letter)
            entry["choices"] = [options.text(name) for name in options.values]
        elif task == "cloze":
            entry["answer"] = entry["answer"].strip().removesuffix(".") or entry["answer"]
        found[key] = entry
    return found


def _pair(
    base: Record, task: str, multi: dict[str, Record], text: dict[str, Record]
) -> Iterator[Record]:
    for key in [*multi, *(k for k in text if k not in multi)]:
        seen, read_ = multi.get(key), text.get(key)
        if seen and read_ and _same(seen, read_):
            yield _record(base, task, seen, question=seen["asked"], text_question=read_["asked"])
            continue
        if seen:
            yield _record(base, task, seen, question=seen["asked"])
        if read_:
            yield _record({**base, "image": None}, task, read_, text_question=read_["asked"])


def _same(first: Record, second: Record) -> bool:
    return first["answer"] == second["answer"] and sorted(first.get("choices", ())) == sorted(
        second.get("choices", ())
    )


def _record(base: Record, task: str, entry: Record, **words: str) -> Record:
    answer, choices = entry["answer"], entry.get("choices")
    return {**base, "task": task, "answer": answer, "choices": choices, **words}
