"""From answers to the cells of results.json; see `metrics` for every figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge import metrics
from expunge.data import TASKS

if TYPE_CHECKING:
    from expunge.evaluate import Answered

FORGOTTEN = ("forget", "test")
"""Sets whose answers are to be unknown, for scores that are read the other way round there."""

MEANS: Mapping[str, Callable[[Answered], float]] = {
    "nll": lambda r: r.nll,
    "answer_probability": lambda r: metrics.answer_probability(r.nll),
    "exact_memorisation": lambda r: r.memorised,
    "extraction_strength": lambda r: r.extraction,
}


def cells(rows: Sequence[Answered], seed: int = 0, *, name: str = "") -> dict[str, Any]:
    """Summarise answers to one set under one condition.

    Args:
        rows: The answers.
        seed: Of the bootstrap behind the intervals, which is over subjects.
        name: The set; empty is one that is to be kept.

    Returns:
        A cell per task and `all`; the means of `MEANS` with their intervals in `ci95`; `bleu` of
        open answers; `subjects`, right answers of how many for each subject, in the order of their
        names; `truth_ratio`, where there are choices; `collapse`, where there are open questions.
    """
    found: dict[str, Any] = {}
    for task in TASKS:
        mine = [r for r in rows if r.example.task == task]
        if mine:
            found[task] = _cell(mine, seed)
            if task == "generation":
                found["bleu"] = _mean([metrics.bleu(r.said, r.example.answer) for r in mine])
    if not rows:
        return found
    found["all"] = _cell(rows, seed)
    subjects = [r.example.subject for r in rows]
    found["ci95"] = {}
    for figure, read in MEANS.items():
        values = [read(r) for r in rows]
        found[figure] = _mean(values)
        if all(map(math.isfinite, values)):
            found["ci95"][figure] = list(metrics.bootstrap_ci(values, subjects, seed=seed))
    found["subjects"] = by_subject(rows)
    told = (r.truth_ratio for r in rows)
    ratios = [ratio for ratio in told if ratio is not None and not math.isnan(ratio)]
    if ratios:
        found["truth_ratio"] = truth_ratio_cell(ratios, name)
    opened = [r for r in rows if r.example.task != "classification"]
    if opened:
        found["collapse"] = metrics.collapse_report(
            [r.said for r in opened], [r.example.answer for r in opened]
        )
    return found


def _cell(rows: Sequence[Answered], seed: int) -> dict[str, Any]:
    right = [float(r.right) for r in rows]
    subjects = [r.example.subject for r in rows]
    cell = {
        "accuracy": _mean(right),
        "n": len(rows),
        "ci95": list(metrics.bootstrap_ci(right, subjects, seed=seed)),
        "rouge_l": _mean([r.rouge_l for r in rows]),
    }
    if all(r.example.choices for r in rows):
        cell["chance"] = metrics.chance([len(r.example.choices or "x") for r in rows])
    return cell


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def by_subject(rows: Sequence[Answered]) -> str:
    """Right answers of how many, such as `3/18 0/18`, one subject after another by name."""
    told: dict[str, list[bool]] = {}
    for row in rows:
        told.setdefault(row.example.subject, []).append(row.right)
    return " ".join(f"{sum(each)}/{len(each)}" for _, each in sorted(told.items()))


def counts(told: str) -> list[tuple[int, int]]:
    """What `by_subject` wrote as (right, asked), one subject after another."""
    pairs = (each.split("/") for each in told.split())
    return [(int(right), int(asked)) for right, asked in pairs]


def each_answer(told: str) -> tuple[list[float], list[int]]:
    """What `by_subject` wrote as 1 or 0 for every question, right ones first, and its subject."""
    values: list[float] = []
    groups: list[int] = []
    for place, (right, asked) in enumerate(counts(told)):
        values += [1.0] * right + [0.0] * (asked - right)
        groups += [place] * asked
    return values, groups


def truth_ratio_cell(ratios: Sequence[float], name: str) -> dict[str, Any]:
    """The score of truth ratios, and of the forget set the ratios themselves (None is infinite)."""
    score = metrics.truth_ratio_score(ratios, name in FORGOTTEN)
    cell: dict[str, Any] = {"score": score, "n": len(ratios), "mean": "arithmetic"}
    if name == "forget":
        cell["values"] = [r if math.isfinite(r) else None for r in ratios]
    return cell


def alignment(multi: Sequence[Answered], text: Sequence[Answered]) -> dict[str, float] | None:
    """How alike the answers to the same question are under the two conditions (UMU-Bench).

    Args:
        multi: Answers with the picture.
        text: Answers in text alone; those to the same examples are compared.

    Returns:
        `acc_r`, `acc_f`, `rouge_r`, `rouge_f` and `n`; None where no question was asked both ways.
    """
    known = {id(r.example): r for r in text}
    pairs = [(r, known[id(r.example)]) for r in multi if id(r.example) in known]
    if not pairs:
        return None
    acc = metrics.modality_alignment([a.right for a, _ in pairs], [b.right for _, b in pairs])
    rouge = metrics.rouge_alignment([a.rouge_l for a, _ in pairs], [b.rouge_l for _, b in pairs])
    names = ("acc_r", "acc_f", "rouge_r", "rouge_f")
    return {**dict(zip(names, (*acc, *rouge), strict=True)), "n": len(pairs)}
