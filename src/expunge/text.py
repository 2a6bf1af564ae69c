"""What commands print for people: tables and lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.data import CONDITIONS, SETS, TASKS

CONDITION_NAMES = {"multi": "image+text", "text": "text only"}


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in [header, ["-" * w for w in widths], *rows]]  # fmt: skip
    return "\n".join(lines)


def _noted(notes: Sequence[str]) -> str:
    return "".join(f"note: {note}\n" for note in notes)


def _cell(figures: Mapping[str, Any] | None) -> str:
    if not figures:
        return "-"
    low, high = figures["all"]["ci95"]
    return f"{figures['all']['accuracy']:.3f} [{low:.2f}, {high:.2f}]"


def results_table(results: Mapping[str, Any], folder: Path | None) -> str:
    """Notes, accuracy of every model on every set under both conditions, and the summary."""
    models = results["models"]
    rows = []
    for name in SETS:
        for condition in CONDITIONS:
            cells = [m.get(name, {}).get(condition) for m in models.values()]
            if any(cells):
                rows.append([name, CONDITION_NAMES[condition], *map(_cell, cells)])
    text = _noted(results["notes"]) + _table(["set", "asked with", *models], rows)
    if results.get("official"):
        text += "\n\n" + _official_table(results["official"])
    summary = results.get("summary")
    if summary:
        text += "\n\n" + _summary_lines(results, summary)
    if folder is not None and (folder / "report.html").is_file():
        text += f"\nreport: {folder / 'report.html'}"
    return text


def _official_table(models: Mapping[str, Any]) -> str:
    """What MLLMU-Bench's release reports of a task, of generation the ROUGE-L alone."""
    rows = []
    for name in SETS:
        for condition in CONDITIONS:
            for task in TASKS:
                cells = [m.get(name, {}).get(condition, {}).get(task) for m in models.values()]
                if any(cells):
                    score = "rougeL" if task == "generation" else "accuracy"
                    told = [_figure(cell[score]) for cell in cells]
                    rows.append([name, CONDITION_NAMES[condition], task, score, *told])
    header = ["set", "asked with", "task", "score", *models]
    return f"by MLLMU-Bench's prompts and rules\n{_table(header, rows)}"


def _summary_lines(results: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    def by_condition(values: Mapping[str, float | None] | None) -> str:
        shown = {CONDITION_NAMES[c]: v for c, v in (values or {}).items() if v is not None}
        return ", ".join(f"{c} {v:.3f}" for c, v in shown.items()) or "not measured"

    plan, lines = results.get("plan"), []
    if plan:
        lines.append(
            f"method {results['method']}: {plan['sites']} sites edited, {plan['neurons']} neurons,"
            f" plan of {plan['bytes'] / 1e6:.2f} MB"
        )
    if "gold" in results["models"]:
        lines.append(f"depth of forgetting (1 = gold): {by_condition(summary['depth'])}")
    else:
        lines.append("depth of forgetting: not measured, it needs a gold model (--gold)")
    for name in ("retain", "neighbor"):
        lines.append(f"{name} kept: {by_condition(summary[f'{name}_kept'])}")
    for name in ("real", "skills"):
        if summary.get(f"{name}_kept") is not None:
            lines.append(f"{name} kept: {summary[f'{name}_kept']:.3f}")
    for c, number in summary.get("still_known", {}).items():
        if number:
            who = "1 forget subject is" if number == 1 else f"{number} forget subjects are"
            lines.append(f"WARNING: {who} still known ({CONDITION_NAMES[c]}), see the report")
    if summary.get("collapsed"):
        lines.append("WARNING: answers have collapsed, see collapse in results.json")
    seconds = ", ".join(f"{k} {v:.1f} s" for k, v in results.get("seconds", {}).items())
    return "\n".join([*lines, f"seconds: {seconds}"])


def site_table(value: Mapping[str, Any]) -> str:
    """The sites of a model, a line each."""
    rows = [
        [s["key"], s["kind"], str(s["width"]), str(s["parameters"]), s["path"],
         "dead" if s["dead"] else ""]
        for s in value["sites"]
    ]  # fmt: skip
    total = sum(s["width"] for s in value["sites"] if not s["dead"])
    head = f"{value['model_type']}: {len(rows)} sites, {total} live neurons"
    table = _table(["site", "kind", "neurons", "parameters", "down projection", ""], rows)
    return f"{head}\n\n{table}"


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def attack_tables(attacks: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows of every attack, each with its title and note."""
    parts = []
    for found in attacks.values():
        rows = [[_figure(cell) for cell in row] for row in found["rows"]]
        table = [_table(list(found["columns"]), rows)] if rows else []
        parts.append("\n".join([found["title"], *table, found["note"]]))
    return "\n\n".join(parts)


def compare_table(value: Mapping[str, Any], out: Path) -> str:
    """Notes, accuracy of every compared run by set and condition, and what each run costs."""
    rows = value["rows"]
    keys = [
        (name, condition)
        for name in SETS
        for condition in CONDITIONS
        if any(condition in row["accuracy"].get(name, {}) for row in rows)
    ]
    header = ["run", *(f"{n} {c}" for n, c in keys), "gap", "depth", "distance", "s", "MB", "front"]
    lines = []
    for row in rows:
        cells = [row["accuracy"].get(n, {}).get(c, {}).get("value") for n, c in keys]
        depths = [d for d in row["summary"]["depth"].values() if d is not None]
        size = None if row["bytes"] is None else row["bytes"] / 1e6
        last = [row["summary"]["modality_gap"], min(depths, default=None), row["distance"]]
        figures = [*cells, *last, row["seconds"], size]
        lines.append([row["name"], *map(_figure, figures), "yes" if row["front"] else ""])
    table = _noted(value["notes"]) + _table(header, lines)
    return f"{table}\nfiles: {out / 'compare.csv'}, compare.json, compare.svg"


def _methods() -> dict[str, str]:
    from expunge.methods import METHODS

    return {name: m.about for name, m in METHODS.items()}


def _metrics() -> dict[str, str]:
    from expunge.metrics import METRICS

    return dict(METRICS)


def _formats() -> dict[str, str]:
    from expunge.formats import FORMATS

    return {name: f.description for name, f in FORMATS.items()}


def _families() -> dict[str, str]:
    from expunge.sites import FAMILIES

    return dict(FAMILIES)


def _attacks() -> dict[str, str]:
    from expunge.attacks import ATTACKS

    return {name: a.about for name, a in ATTACKS.items()}


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "metrics": _metrics,
    "formats": _formats,
    "families": _families,
    "attacks": _attacks,
}
