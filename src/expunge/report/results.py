"""Read access to `results.json`: which model scored what, on which set, under which condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.data import CONDITIONS, SETS, TASKS
from expunge.report.figures import as_list, as_map, figure, ordered

MODELS = ("vanilla", "unlearned", "gold")


@dataclass(frozen=True)
class Score:
    """One mean accuracy.

    Attributes:
        accuracy: Share of right answers.
        low: Lower end of its 95 % interval, or None.
        high: Upper end, or None.
        n: Number of questions, or None.
        chance: Accuracy of guessing, or None.
        rouge_l: Mean ROUGE-L, or None.
    """

    accuracy: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    chance: float | None = None
    rouge_l: float | None = None


class Results:
    """The figures of one run.

    Args:
        data: The parsed `results.json`.

    Raises:
        InputError: A part has the wrong type or a share lies outside 0 to 1.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.summary = as_map(data.get("summary"), "results.json summary")
        self._cells: dict[tuple[str, str, str], Mapping[str, Any]] = dict(_cells(data))
        self.models = ordered(MODELS, (key[0] for key in self._cells))
        self.sets = ordered(SETS, (key[1] for key in self._cells))
        self.conditions = ordered(CONDITIONS, (key[2] for key in self._cells))

    def score(self, model: str, name: str, condition: str, task: str = "all") -> Score | None:
        """Return one score, or None where it was not measured.

        Without an `all` entry the overall accuracy is the mean over the tasks weighted by their
        numbers of questions, and has no interval.
        """
        cell = self._cells.get((model, name, condition), {})
        where = f"results.json models {model} {name} {condition}"
        if task == "all" and cell.get("all") is None:
            return _pooled([_score(cell.get(part), f"{where} {part}") for part in TASKS])
        return _score(cell.get(task), f"{where} {task}")

    def cell(self, model: str, name: str, condition: str) -> Mapping[str, Any]:
        """Return everything measured of a model on a set under a condition."""
        return self._cells.get((model, name, condition), {})

    def value(self, model: str, name: str, condition: str, key: str) -> float | None:
        """Return a plain figure of a cell, such as `nll`, or None."""
        where = f"results.json models {model} {name} {condition} {key}"
        return figure(self.cell(model, name, condition).get(key), where)

    def summary_by_condition(self, key: str) -> dict[str, float]:
        """Return a summary entry as {condition: figure}; a single figure stands under `all`."""
        entry = self.summary.get(key)
        where = f"results.json summary {key}"
        if not isinstance(entry, Mapping):
            entry = {"all": entry}
        found = {name: figure(item, f"{where} {name}") for name, item in entry.items()}
        return {name: item for name, item in found.items() if item is not None}


def _cells(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], Mapping[str, Any]]]:
    for model, sets in as_map(data.get("models"), "results.json models").items():
        for name, conditions in as_map(sets, f"results.json models {model}").items():
            where = f"results.json models {model} {name}"
            for condition, cell in as_map(conditions, where).items():
                if cell := as_map(cell, f"{where} {condition}"):
                    yield (model, name, condition), cell


def _score(entry: Any, where: str) -> Score | None:
    entry = as_map(entry, where)
    accuracy = figure(entry.get("accuracy"), f"{where} accuracy", share=True)
    if accuracy is None:
        return None
    ends = [
        figure(end, f"{where} ci95", share=True)
        for end in as_list(entry.get("ci95"), f"{where} ci95")
    ]
    low, high = ends if len(ends) == 2 else (None, None)
    n = figure(entry.get("n"), f"{where} n")
    return Score(
        accuracy=accuracy,
        low=low,
        high=high,
        n=None if n is None else int(n),
        chance=figure(entry.get("chance"), f"{where} chance", share=True),
        rouge_l=figure(entry.get("rouge_l"), f"{where} rouge_l", share=True),
    )


def _pooled(scores: list[Score | None]) -> Score | None:
    counted = [(score, score.n) for score in scores if score is not None and score.n]
    total = sum(n for _, n in counted)
    if not total:
        return None
    chances = [score.chance * n for score, n in counted if score.chance is not None]
    return Score(
        accuracy=sum(score.accuracy * n for score, n in counted) / total,
        n=total,
        chance=sum(chances) / total if len(chances) == len(counted) else None,
    )
