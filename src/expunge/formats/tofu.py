"""TOFU (arXiv 2401.06121): questions about fictitious authors, text only.

Rows carry no author; the files list twenty consecutive questions for each, and the files about
real authors and the world, told by `original_answer`, one question for each subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from expunge.formats.row import Record, Row

QUESTIONS_PER_AUTHOR = 20


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is TOFU's; bare question and answer are too little."""
    marks = {"task_id", "perturbed_answer", "paraphrased_answer"}
    return {"question", "answer"} <= columns and bool(marks & columns) and "subject" not in columns


def read(row: Row) -> Iterator[Record]:
    """One generation question, and one classification question where wrong answers are given."""
    question, answer = row.text("question"), row.text("answer")
    subject = _subject(row)
    common = {"subject": subject, "text_question": question}
    yield {**common, "answer": answer, "task": "generation"}
    if row.values.get("perturbed_answer") is not None:
        right = row.maybe("paraphrased_answer") or answer
        choices = [right, *row.texts("perturbed_answer")]
        yield {**common, "answer": right, "choices": choices, "task": "classification"}


def _subject(row: Row) -> str:
    stem = row.stem.removesuffix("_perturbed")
    if row.values.get("original_answer") is not None:
        return f"{stem}:{row.number}"
    return f"{stem}:{(row.number - 1) // QUESTIONS_PER_AUTHOR + 1}"
