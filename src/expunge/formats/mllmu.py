"""MLLMU-Bench (arXiv 2410.22108): its files, its prompts and its scoring.

Training rows (`ft_Data`, `ft_data_text.jsonl`) hold a list of questions in `metadata`; evaluation
rows hold three tasks. The image and the text questions of a task are different questions, so each
counts for one condition; `biography`, `question` and `answer` of evaluation rows are not part of
the release's evaluation and are not read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from expunge.errors import InputError, unknown
from expunge.formats.row import Record, Row

if TYPE_CHECKING:
    from expunge.data import Example

LETTER = "Just give ONE letter representing the answer directly."
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE = {
    "multi": "Answer the question based on your trained knowledge in one sentence accurately "
    "in ENGLISH.",
    "text": "Answer the question based on your trained knowledge in one sentence in ENGLISH.",
}
KINDS = {"Image_Textual": "question", "Pure_Text": "text_question"}
TASKS = ("Classification_Task", "Generation_Task", "Mask_Task")
IDS = "_ids.json"


def claims(columns: Set[str]) -> bool:
    """Whether a row with these columns is MLLMU-Bench's."""
    return "ID" in columns and bool({"metadata", *TASKS} & columns)


def read(row: Row) -> Iterator[Record]:
    """The training questions of a row, or its three tasks under both conditions.

    Where a row has several pictures (`images`, the test set), its image questions take them in
    turn; the release draws one at random.
    """
    subject, pictures = row.text("ID"), _pictures(row)
    if row.values.get("metadata") is not None:
        row = row.parsed("metadata")
        records = _questions(row)
    else:
        records = (r for task in TASKS if row.values.get(task) for r in _READERS[task](row, task))
    seen = 0
    for record in records:
        image = None
        if "question" in record:
            image = pictures[seen % len(pictures)]
            seen += 1
        yield {"subject": subject, "image": image, **record}


def subset(folder: Path, split: str) -> Callable[[Row], bool]:
    """The test that keeps the subjects of one split, from `<split>_ids.json` beside the data.

    Raises:
        InputError: No such list, or it is no list of ids.
    """
    path = folder / f"{split}{IDS}"
    if not path.is_file():
        there = [p.name.removesuffix(IDS) for p in folder.glob(f"*{IDS}")]
        if there:
            raise unknown("split", split, there)
        raise InputError(f"split {split!r} needs the file {path}, which does not exist.")
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}).") from error
    if not isinstance(ids, list):
        raise InputError(f"{path}: expected a list of ids, found {type(ids).__name__}.")
    keep = {str(i) for i in ids}
    return lambda row: row.text("ID") in keep


def _pictures(row: Row) -> list[object]:
    several = row.values.get("images")
    if several is not None:
        if not isinstance(several, list) or not several:
            raise row.error("images", "expected a list with at least one image")
        return several
    for field in ("image", "image_path"):
        if row.values.get(field) is not None:
            return [row.values[field]]
    raise row.error("image", "missing or null; expected image, images or image_path")


def _questions(row: Row) -> Iterator[Record]:
    for item in row.rows("metadata"):
        yield {"question": item.text("Question"), "answer": item.text("Answer")}


def _classification(row: Row, task: str) -> Iterator[Record]:
    lists = row.inner(task)
    for kind, field in KINDS.items():
        name = f"{kind}_Questions"
        for item in lists.rows(name) if lists.values.get(name) is not None else ():
            yield {field: item.text("Question"), "task": "classification", **_options_of(item)}


def _options_of(item: Row) -> Record:
    """Answer, choices and, where they are not A, B, C in order, letters of the choices.

    An option that is null is none, and leaves the others their letters. Of options that read alike
    the right one's letter comes first.
    """
    options, right = item.inner("Options"), item.text("Correct_Answer").strip()
    given = {key: options.text(key) for key, v in options.values.items() if v is not None}
    if right not in given:
        raise item.error("Correct_Answer", f"expected a letter among {', '.join(given)}")
    if any(len(key) != 1 or key not in ascii_uppercase for key in given):
        raise item.error("Options", f"expected capital letters, found {', '.join(given)}")
    answer, letters = given[right], list(given)
    first = next(place for place, text in enumerate(given.values()) if text == answer)
    letters[letters.index(right)], letters[first] = letters[first], right
    told = "".join(letters)
    usual = told == ascii_uppercase[: len(told)]
    choices = list(given.values())
    return {"answer": answer, "choices": choices, "letters": None if usual else told}


def _typed(row: Row, task: str) -> Iterator[Record]:
    name = "generation" if task == "Generation_Task" else "cloze"
    for item in row.rows(task):
        kind = item.text("Type")
        if kind not in KINDS:
            raise item.error("Type", f"expected one of {', '.join(KINDS)}")
        question, answer = item.text("Question"), item.text("Ground_Truth")
        yield {KINDS[kind]: question, "answer": answer, "task": name}


_READERS = dict(zip(TASKS, (_classification, _typed, _typed), strict=True))

_PERSON = r"(?:this|the)\s+(?:person|individual)"
_ASKS_NAME = re.compile(
    rf"what\s+is\s+(?:{_PERSON}['’]s\s+(?:full\s+)?name"
    rf"|the\s+(?:full\s+)?name\s+(?:of\s+{_PERSON}(?!['’]s)|associated\s+with\s+this\s+profile))",
    re.IGNORECASE,
)
_NAMED = re.compile(r"(?:\bname\b.*?\bis|\bnamed|\bin the image is)\s+(.+)", re.IGNORECASE)


def names(examples: Iterable[Example]) -> dict[str, str]:
    """Each subject's name, from the answer to the question that asks for it.

    The training questions never name their subject; `text_only` needs the names that this finds.
    A subject whose name is not asked for is left out.
    """
    found: dict[str, str] = {}
    for example in examples:
        if example.question and _ASKS_NAME.match(example.question.strip()):
            answer = example.answer.strip().rstrip(".")
            said = _NAMED.search(answer)
            found.setdefault(example.subject, (said.group(1) if said else answer).strip())
    return found


def draw_few_shot(pool: Sequence[Example], *, shots: int = 2, seed: int = 0) -> list[Example]:
    """Worked examples for all questions of a task: the first question of each of `shots` subjects.

    The release draws them once for an evaluation, and asks all but the questions drawn. It draws
    without a seed; the same arguments here give the same examples.

    Args:
        pool: Questions of one task and condition, of which the drawn ones are not to be asked.
        shots: How many, 2 for LLaVA and 1 for Idefics in the release.
        seed: Seed of the draw.

    Raises:
        InputError: The pool has too few subjects, or nothing is left to ask.
    """
    first: dict[str, Example] = {}
    for example in pool:
        first.setdefault(example.subject, example)
    if len(first) < shots or len(pool) <= shots:
        raise InputError(
            f"{shots} few-shot examples are drawn from as many subjects, and the other questions "
            f"asked; found {len(pool)} questions about {len(first)} subjects, expected more"
        )
    chosen = random.Random(seed).sample(sorted(first), shots)
    return [first[subject] for subject in chosen]


def official_prompt(
    example: Example, *, condition: str = "multi", few_shot: Sequence[Example] = ()
) -> str:
    """The prompt of the release's parquet evaluation, with `<image>` where a picture belongs.

    Args:
        example: The question.
        condition: ``multi`` or ``text``.
        few_shot: Worked examples of the same task, which stand before a classification or cloze
            question, and their pictures before its own.
    """
    words, image = example.prompt(condition), condition == "multi"
    if example.task == "generation":
        start, end = ("USER: <image>\n", "ASSISTANT: ") if image else ("USER: ", "ASSISTANT:")
        return f"{start}{words}\n{SENTENCE[condition]}\n{end}"
    worked = "".join(_shot(shot, condition) for shot in few_shot)
    start = "USER: <image>\n" if image else "USER:\n"
    asked = _blanked(words) if example.task == "cloze" else _lettered(example, words)
    return f"{worked}{start}{asked}\nASSISTANT:"


def official_score(example: Example, answer: str) -> dict[str, float]:
    """The release's score of one answer.

    Args:
        example: The question with its reference.
        answer: The model's words after the prompt.

    Returns:
        ``{"accuracy"}`` (0 or 1) for classification and cloze; ``{"rouge1", "rouge2", "rougeL",
        "bleu"}`` in [0, 1] for generation (stemmed F1; sentence BLEU on words split at blanks).
    """
    said = answer.strip()
    if example.task == "cloze":
        return {"accuracy": float(example.answer.casefold() in said.casefold())}
    if example.task == "classification":
        return {"accuracy": float(said[:1].upper() == _right_letter(example))}
    from rouge_score.rouge_scorer import RougeScorer

    from expunge.metrics import bleu_method1

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = scorer.score(example.answer, said)
    rouge = {name: float(score.fmeasure) for name, score in scores.items()}
    return {**rouge, "bleu": bleu_method1(said, example.answer)}


def _lettered(example: Example, words: str) -> str:
    return f"{words}\n{_options(example)}{LETTER}"


def _blanked(words: str) -> str:
    return f"{words.replace('__', '[Blank]')}\n{BLANK}"


def _letters(example: Example) -> str:
    """The letter of each choice."""
    number = len(example.choices or ())
    if number > len(ascii_uppercase):
        raise InputError(f"a question has {number} choices, expected at most 26 to name by letters")
    return example.letters or ascii_uppercase[:number]


def _right_letter(example: Example) -> str:
    return _letters(example)[(example.choices or ()).index(example.answer)]


def _options(example: Example) -> str:
    options = sorted(zip(_letters(example), example.choices or (), strict=True))
    return "".join(f"{letter}: {text}\n" for letter, text in options)


def _shot(example: Example, condition: str) -> str:
    words, image = example.prompt(condition), "<image>" if condition == "multi" else ""
    if example.task == "cloze":
        return f"USER:{image}\n{_blanked(words)}\nCorrect Answer: {example.answer}\n"
    start = f"USER: {image}\n" if image else "USER:\n"
    right = _right_letter(example)
    return f"{start}Question: {words}\n{_options(example)}Correct Answer: {right}\n"
