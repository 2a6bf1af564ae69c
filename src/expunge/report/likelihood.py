"""Tables of wording and likelihood, of what changed, and of a release's own scoring."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.report.accuracy import condition_name
from expunge.report.figures import (
    MISSING,
    Table,
    as_list,
    as_map,
    between,
    figure,
    percent,
    short,
)
from expunge.report.results import Results

KINDS: Mapping[str, tuple[str, ...]] = {
    "ROUGE-L of open answers": ("generation", "rouge_l"),
    "BLEU of open answers": ("bleu",),
    "answer probability": ("answer_probability",),
    "answer loss": ("nll",),
    "exact memorisation": ("exact_memorisation",),
    "extraction strength": ("extraction_strength",),
    "truth ratio score": ("truth_ratio", "score"),
    "right in both conditions": ("alignment", "acc_r"),
    "wrong in both conditions": ("alignment", "acc_f"),
    "ROUGE-L agreed on (RLR)": ("alignment", "rouge_r"),
    "ROUGE-L left over (RLF)": ("alignment", "rouge_f"),
}
"""Title -> where it stands in a cell of results.json."""


def likelihood_table(results: Results) -> Table | None:
    """Every figure of `KINDS` for every model, or None where none was measured."""
    rows = []
    for name in results.sets:
        for condition in results.conditions:
            for title, path in KINDS.items():
                cells = [_cell(results, model, name, condition, path) for model in results.models]
                if any(cell != MISSING for cell in cells):
                    rows.append([name, condition_title(condition, path), title, *cells])
    columns = ["set", "condition", "figure", *results.models]
    caption = (
        "Wording and likelihood of the reference answer, with 95 % intervals over subjects where"
        " they were worked out; loss in nats per answer token; the truth ratio takes the arithmetic"
        " mean over wrong answers"
    )
    return Table(caption, columns, rows, heads=3) if rows else None


def condition_title(condition: str, path: tuple[str, ...]) -> str:
    """Plain words for a condition; agreement is between both."""
    return "both" if path[0] == "alignment" else condition_name(condition)


def _cell(results: Results, model: str, name: str, condition: str, path: tuple[str, ...]) -> str:
    where = f"results.json models {model} {name} {condition}"
    cell = results.cell(model, name, condition)
    entry = cell if len(path) == 1 else as_map(cell.get(path[0]), f"{where} {path[0]}")
    value = short(figure(entry.get(path[-1]), f"{where} {path[-1]}"))
    ends = as_list(as_map(cell.get("ci95"), f"{where} ci95").get(path[0]), f"{where} ci95")
    known = [short(figure(end, f"{where} ci95")) for end in ends]
    return between(value, known) if len(path) == 1 else value


def change_table(results: Results) -> Table | None:
    """Accuracy of the edited model less vanilla's on the same questions, or None."""
    rows = []
    for name in results.sets:
        told = as_map(as_map(results.summary.get("changed"), "summary changed").get(name), name)
        for condition, entry in told.items():
            where = f"results.json summary changed {name} {condition}"
            entry = as_map(entry, where)
            ends = [percent(figure(end, where)) for end in as_list(entry.get("ci95"), where)]
            change = between(percent(figure(entry.get("difference"), where)), ends)
            p = short(figure(entry.get("p"), where))
            rows.append([name, condition_name(condition), change, p])
    caption = (
        "Accuracy, unlearned less vanilla: paired bootstrap over subjects, 95 % interval and"
        " two-sided p"
    )
    return Table(caption, ["set", "condition", "change", "p"], rows, heads=2) if rows else None


def official_table(results: Results) -> Table | None:
    """Scores by the prompts and rules of MLLMU-Bench's release, or None where none were asked."""
    told = as_map(results.data.get("official"), "results.json official")
    rows: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for model, sets in told.items():
        for name, conditions in as_map(sets, f"official {model}").items():
            for condition, tasks in as_map(conditions, f"official {model} {name}").items():
                for task, cell in as_map(tasks, f"official {model} {name} {condition}").items():
                    where = f"results.json official {model} {name} {condition} {task}"
                    for key, value in as_map(cell, where).items():
                        head = name, condition_name(condition), task, key
                        rows.setdefault(head, {})[model] = short(figure(value, where))
    models = list(told)
    lines = [[*head, *(cells.get(m, MISSING) for m in models)] for head, cells in rows.items()]
    caption = "MLLMU-Bench's own prompts and rules; n is the number of questions asked"
    columns = ["set", "condition", "task", "score", *models]
    return Table(caption, columns, lines, heads=4) if lines else None
