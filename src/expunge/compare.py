"""Methods and budgets on one task: one table, one picture, every run a folder that resumes."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from expunge import content, methods
from expunge.config import RunConfig
from expunge.data import CONDITIONS, SETS, Suite
from expunge.errors import InputError
from expunge.folder import STATE, claim, replace_with, write_json
from expunge.pipeline import Run
from expunge.planning import origin, settled
from expunge.progress import Progress
from expunge.report import write_report
from expunge.report.charts import Point
from expunge.report.scatter import Spot, scatter, standalone
from expunge.selection import check_budget
from expunge.summary import summarise

FORGOTTEN = ("forget", "test")
KEPT = ("retain", "neighbor", "real", "skills")
OWN = ("method", "budget", "strength")
AXES = ("accuracy on what was to be forgotten", "accuracy on what was to be kept")

Row = dict[str, Any]


def compare(
    config: RunConfig,
    suite: Suite,
    names: Sequence[str],
    out: str | Path,
    *,
    budgets: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run several methods on one task and put their figures side by side.

    Writes `compare.json`, `compare.csv` and `compare.svg` to `out`, and a run folder per method
    and budget under `out/runs`. What is done already is not done again; vanilla and gold are
    evaluated once. A method without a budget runs once.

    Args:
        config: Model, gold and settings; its method and budget are replaced.
        suite: The question sets.
        names: Methods, see `expunge list methods`; `manu=0.05` or `filter=1` gives a method a
            budget or strength of its own.
        out: A new folder, or one with a comparison of the same task.
        budgets: Shares of the neurons to prune; None is each method's own.
        progress: Where to show progress.

    Returns:
        {"rows": [...], "versions", "seed", "notes"}; see `row` for the entries. Vanilla comes
        first, then gold where there is one.

    Raises:
        InputError: No method, an unknown one, or a folder that holds something else.
    """
    out = Path(out)
    jobs = runs(config, suite, names, out, budgets, progress or Progress())
    shared = {k: v for k, v in config.as_dict().items() if k not in OWN}
    prints = {n: content.fingerprint(rows) for n, rows in suite.sets.items()}
    claim(out, {"config": {**shared, "comparison": True}, "data": prints, "weights": ""})
    rows: list[Row] = []
    models: dict[str, Any] = {}
    loaded = None
    for name, job in jobs.items():
        if loaded is not None:
            job.loaded = loaded
        results = finished(job, out / "figures")
        loaded = job.loaded
        models = {**results["models"], **models}
        rows.append(row(name, results["models"]["unlearned"], results["models"], job, results))
    unedited = [row(n, models[n], models) for n in ("vanilla", "gold") if n in models]
    mark_front(rows)
    value = {"rows": [*unedited, *rows], **origin(config, suite)}
    write_all(out, value)
    return value


def embedded(config: RunConfig) -> tuple[RunConfig, Suite]:
    """The embedded world as the task: the configuration with its checkpoints, and its sets."""
    from expunge.fiction.shipped import checkpoint, suite

    given = {n: getattr(config, n) for n in (*SETS, "gold") if getattr(config, n)}
    if given:
        raise InputError(f"--{next(iter(given))} is given without --model, expected both or none")
    chosen = dataclasses.replace(
        config,
        model=str(checkpoint("vanilla")),
        gold=str(checkpoint("gold")),
        forget="fiction",
        retain="fiction",
    )
    return chosen, suite()


def share_list(text: str | None) -> list[float] | None:
    """Budgets as they are given on the command line, such as `0.01,0.05`."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--budgets is {text!r}, expected numbers such as 0.01,0.05") from error
    for budget in found:
        check_budget(budget)
    return found


def runs(
    config: RunConfig,
    suite: Suite,
    names: Sequence[str],
    out: Path,
    budgets: Sequence[float] | None,
    progress: Progress,
) -> dict[str, Run]:
    """The runs of a comparison by name, such as `manu 0.02`; nothing is run yet."""
    found: dict[str, Run] = {}
    for given in dict.fromkeys(names):
        for name, own in settings_of(given, budgets):
            chosen = settled(dataclasses.replace(config, **own))
            folder = out / "runs" / name.replace(" ", "-")
            found[name] = Run(folder, chosen, suite, progress)
    if not found:
        raise InputError("no method is named, expected --methods such as manu,filter,random")
    return found


def settings_of(given: str, budgets: Sequence[float] | None) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings of the runs of one method, given as `manu`, `manu=0.05` or `filter=1`."""
    name, _, number = given.partition("=")
    method = methods.get(name)
    if number:
        kind = "budget" if method.budget is not None else "strength"
        if getattr(method, kind) is None:
            raise InputError(f"{given!r} is given, but {name} has neither a budget nor a strength")
        try:
            value = float(number)
        except ValueError as error:
            raise InputError(f"{given!r} is given, expected a number after =") from error
        return [(f"{name} {value:g}", {"method": name, kind: value})]
    if method.budget is None:
        return [(name, {"method": name, "budget": None})]
    chosen = budgets or [method.budget]
    return [(f"{name} {b:g}", {"method": name, "budget": b}) for b in chosen]


def finished(job: Run, figures: Path) -> dict[str, Any]:
    """Results of one run, made or read; vanilla's and gold's figures are shared through a folder.

    No edited checkpoint is written: the plan is applied for the evaluation and undone. Figures are
    shared under the fingerprint of the weights that they were measured on.
    """
    with job.opened():
        own = job.folder / "figures"
        state = json.loads((job.folder / STATE).read_text(encoding="utf-8"))
        figures = figures / state["weights"]
        _copy_figures(figures, own)
        results = job.evaluate(job.plan())
        _copy_figures(own, figures)
        write_report(job.folder, show_content=job.config.show_content)
    return results


def _copy_figures(source: Path, target: Path) -> None:
    for name in ("vanilla.json", "gold.json", "vanilla.official.json", "gold.official.json"):
        if (source / name).is_file() and not (target / name).is_file():
            target.mkdir(parents=True, exist_ok=True)
            replace_with(target / name, partial(shutil.copyfile, source / name))


def row(
    name: str,
    figures: Mapping[str, Any],
    models: Mapping[str, Any],
    job: Run | None = None,
    results: Mapping[str, Any] | None = None,
) -> Row:
    """One line of the comparison.

    Returns:
        name, method, budget, run (folder), accuracy {set: {condition: {value, low, high}}},
        forget and kept (means over the sets to forget and to keep; the ends are means of the
        cells' ends, which is wider than the interval of the mean), summary (as results.json has
        it), distance (see `distance`), seconds (collect and plan), bytes (of the plan), front.
    """
    accuracy: dict[str, dict[str, dict[str, float]]] = {}
    for which, conditions in figures.items():
        for condition, cell in conditions.items():
            low, high = cell["all"]["ci95"]
            found = {"value": cell["all"]["accuracy"], "low": low, "high": high}
            accuracy.setdefault(which, {})[condition] = found
    trio = {"vanilla": models["vanilla"], "unlearned": figures}
    trio |= {"gold": models["gold"]} if "gold" in models else {}
    summary = summarise(trio)
    seconds = (results or {}).get("seconds", {})
    return {
        "name": name,
        "method": job.config.method if job else None,
        "budget": job.config.budget if job else None,
        "run": f"runs/{job.folder.name}" if job else None,
        "accuracy": accuracy,
        "forget": _mean(accuracy, FORGOTTEN),
        "kept": _mean(accuracy, KEPT),
        "summary": summary,
        "distance": distance(trio),
        "seconds": seconds.get("collect", 0.0) + seconds.get("plan", 0.0) if job else None,
        "bytes": results["plan"]["bytes"] if results else None,
        "front": False,
    }


def distance(models: Mapping[str, Any]) -> float:
    """How far a model is from ideal: what it should know and does not, and the reverse.

    The sum of five means over conditions: |accuracy - gold's| on forget and test (without gold the
    distance from chance, or from 0 where there are no choices), and 1 - unlearned / vanilla, at
    least 0, on each of retain, neighbor, real and skills.
    """
    ours, vanilla, gold = models["unlearned"], models["vanilla"], models.get("gold")
    apart = []
    for name in FORGOTTEN:
        for condition, cell in ours.get(name, {}).items():
            floor = cell["all"].get("chance", 0.0)
            if gold is not None:
                floor = gold[name][condition]["all"]["accuracy"]
            apart.append(abs(cell["all"]["accuracy"] - floor))
    total = sum(apart) / len(apart) if apart else 0.0
    for name in KEPT:
        lost = [
            max(0.0, 1 - cell["all"]["accuracy"] / before)
            for condition, cell in ours.get(name, {}).items()
            if (before := vanilla[name][condition]["all"]["accuracy"])
        ]
        total += sum(lost) / len(lost) if lost else 0.0
    return float(total)


def _mean(accuracy: Mapping[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    cells = [cell for n in names for cell in accuracy.get(n, {}).values()]
    if not cells:
        return None
    return {key: sum(c[key] for c in cells) / len(cells) for key in ("value", "low", "high")}


def mark_front(rows: Sequence[Row]) -> None:
    """Set `front` where no other row is as good in forgetting and keeping and better in one."""
    points = [
        (r["forget"]["value"], -r["kept"]["value"]) if r["forget"] and r["kept"] else None
        for r in rows
    ]
    for r, mine in zip(rows, points, strict=True):
        r["front"] = mine is not None and not any(
            p is not None and p != mine and p[0] <= mine[0] and p[1] <= mine[1] for p in points
        )


def write_all(out: Path, value: Mapping[str, Any]) -> None:
    """Write the table as JSON and CSV, and the picture where there is something to keep."""
    write_json(out / "compare.json", value)
    text = as_csv(value["rows"])
    replace_with(out / "compare.csv", lambda p: p.write_text(text, encoding="utf-8"))
    shown = [r for r in value["rows"] if r["forget"] and r["kept"]]
    if shown:
        drawing = picture(shown)
        replace_with(out / "compare.svg", lambda p: p.write_text(drawing, encoding="utf-8"))


def flat(entry: Row) -> dict[str, Any]:
    """One row as the columns of the CSV file."""
    cells: dict[str, Any] = {k: entry[k] for k in ("name", "method", "budget")}
    for name in SETS:
        for condition in CONDITIONS:
            cell = entry["accuracy"].get(name, {}).get(condition, {})
            for key, suffix in (("value", ""), ("low", " low"), ("high", " high")):
                cells[f"{name} {condition}{suffix}"] = cell.get(key)
    summary = entry["summary"]
    cells["modality gap"] = summary["modality_gap"]
    for condition in CONDITIONS:
        cells[f"depth {condition}"] = summary["depth"].get(condition)
    cells["collapsed"] = summary["collapsed"]
    return cells | {k: entry[k] for k in ("distance", "seconds", "bytes", "front", "run")}


def as_csv(rows: Sequence[Row]) -> str:
    """The comparison as CSV, a line per row."""
    lines = [flat(r) for r in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def picture(rows: Sequence[Row]) -> str:
    """Forgetting against keeping as an SVG file: every row a mark, the Pareto front a line."""
    spots = [Spot(r["name"], Point(**r["forget"]), Point(**r["kept"]), r["front"]) for r in rows]
    told = (f"{s.label} {s.x.value:.3f} and {s.y.value:.3f}" for s in spots)
    desc = f"Accuracy to forget and to keep: {'; '.join(told)}."
    return standalone(scatter("compare", "Forgetting against keeping", desc, AXES, spots))
