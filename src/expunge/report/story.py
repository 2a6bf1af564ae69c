"""Views of everything around the figures: the request, search, attacks, content, provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.data import SETS
from expunge.errors import InputError
from expunge.report.charts import line_plot
from expunge.report.figures import MISSING, Table, as_list, as_map, figure, flatten, plain
from expunge.report.folder import Run

HASH = re.compile(r"[0-9a-f]{8,64}")
WITHHELD = "withheld"
PRIVATE = {*SETS, "data", "subject", "subjects"}
CONTENT = ("subject", "question", "vanilla", "unlearned", "gold")
Header = Mapping[str, Any]


def request_table(run: Run, header: Header) -> Table:
    """What was asked: method, size of the sets, budget, strength, extent of the edit."""
    config = {**as_map(run.config, "config.yaml"), **as_map(header.get("config"), "plan config")}
    data = as_map(header.get("data"), "plan data")
    rows = [["method", plain(run.results.data.get("method") or header.get("method"))]]
    for name in ("forget", "retain"):
        part = as_map(data.get(name), f"plan data {name}")
        rows.append([f"questions to {name}", plain(part.get("n"))])
        subjects = part.get("subjects")
        count = subjects if isinstance(subjects, int) or subjects is None else len(subjects)
        rows.append([f"subjects to {name}", plain(count)])
    rows += [[name, plain(config[name])] for name in ("budget", "strength") if name in config]
    size = as_map(run.results.data.get("plan"), "results.json plan")
    rows += [[f"plan {name}", plain(value)] for name, value in size.items()]
    return Table("The request", ["item", "value"], rows)


def subject_hashes(header: Header) -> list[str]:
    """Salted hashes of the forget subjects; anything that is no hash is withheld."""
    data = as_map(header.get("data"), "plan data")
    subjects = as_map(data.get("forget"), "plan data forget").get("subjects")
    if not isinstance(subjects, list):
        return []
    return [
        item if isinstance(item, str) and HASH.fullmatch(item) else f"({WITHHELD}: not a hash)"
        for item in subjects
    ]


def search_table(search: Mapping[str, Any]) -> Table:
    """The strengths tried, and which was chosen."""
    steps = [
        flatten(as_map(step, "search.json step"))
        for step in as_list(search.get("steps"), "search.json steps")
    ]
    columns = list(dict.fromkeys(name for step in steps for name in step if name != "chosen"))
    rows = [
        [*(plain(step.get(name)) for name in columns), "✔ chosen" if step.get("chosen") else ""]
        for step in steps
    ]
    chosen = frozenset(number for number, step in enumerate(steps) if step.get("chosen"))
    titles = [name.replace("_", " ") for name in columns]
    return Table("Strengths tried", [*titles, "choice"], rows, chosen=chosen)


def attack_views(attacks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One view per attack: title, note, table and, where there are curves, a picture."""
    views = []
    for number, (kind, entry) in enumerate(attacks.items()):
        where = f"attacks.json {kind}"
        entry = as_map(entry, where)
        title = str(entry.get("title") or kind)
        columns = [str(name) for name in as_list(entry.get("columns"), f"{where} columns")]
        rows = [
            [plain(cell) for cell in as_list(row, f"{where} rows")]
            for row in as_list(entry.get("rows"), f"{where} rows")
        ]
        if wrong := [row for row in rows if len(row) != len(columns)]:
            raise InputError(
                f"{where} has a row of {len(wrong[0])} cells for {len(columns)} columns; "
                "run the attack again"
            )
        curves = _curves(as_map(entry.get("curves"), f"{where} curves"), where)
        views.append(
            {
                "title": title,
                "note": str(entry.get("note") or ""),
                "table": Table(title, columns, rows) if rows else None,
                "picture": _curve_plot(f"attack-{number}", title, curves),
            }
        )
    return views


def content_table(content: Mapping[str, Any]) -> Table:
    """The forget questions with each model's answer (only when asked for)."""
    rows = []
    for entry in as_list(content.get("forget"), "content.json forget"):
        entry = as_map(entry, "content.json forget")
        rows.append([plain(entry.get(name)) for name in CONTENT])
    return Table("Answers about the forget set", list(CONTENT), rows)


def provenance_tables(run: Run, header: Header, *, show_content: bool) -> list[Table]:
    """Where the run comes from: base model, data hashes, settings, versions, times."""
    data = as_map(header.get("data"), "plan data")
    hashes = {
        f"{name} hash": as_map(part, f"plan data {name}").get("hash") for name, part in data.items()
    }
    base = as_map(header.get("base"), "plan base")
    origin = {
        "plan method": header.get("method"),
        "plan format version": header.get("version"),
        "date": header.get("date"),
        "seed": run.results.data.get("seed", header.get("seed")),
        **{f"base {name}": value for name, value in base.items()},
        **hashes,
    }
    settings = {
        "Method configuration (plan)": header.get("config"),
        "Run configuration (config.yaml)": run.config,
    }
    parts: dict[str, Any] = {"Origin": {name: v for name, v in origin.items() if v is not None}}
    for title, values in settings.items():
        values = as_map(values, title)
        parts[title] = flatten(values if show_content else hide(values))
    versions = header.get("versions")
    parts["Versions (plan)"] = as_map(versions, "plan versions")
    parts["Versions (evaluation)"] = as_map(run.results.data.get("versions"), "versions")
    parts["Seconds"] = as_map(run.results.data.get("seconds"), "results.json seconds")
    return [
        Table(title, ["item", "value"], [[name, plain(value)] for name, value in values.items()])
        for title, values in parts.items()
        if values
    ]


def hide(value: Any, *, private: bool = False) -> Any:
    """Withhold every text that stands under the name of a data set: paths may name a subject."""
    if isinstance(value, Mapping):
        return {
            name: hide(item, private=private or str(name).split("_")[0] in PRIVATE)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [hide(item, private=private) for item in value]
    return f"({WITHHELD})" if private and isinstance(value, str) else value


def _curves(curves: Mapping[str, Any], where: str) -> dict[str, Sequence[tuple[float, float]]]:
    found: dict[str, Sequence[tuple[float, float]]] = {}
    for name, points in curves.items():
        curve = []
        for point in as_list(points, f"{where} curve {name}"):
            pair = [figure(value, f"{where} curve {name}") for value in as_list(point, where)]
            if len(pair) != 2:
                raise InputError(
                    f"{where} curve {name} has a point of {len(pair)} numbers, expected [x, y]; "
                    "run the attack again"
                )
            if pair[0] is not None and pair[1] is not None:
                curve.append((pair[0], pair[1]))
        if curve:
            found[str(name)] = curve
    return found


def _curve_plot(
    ident: str, title: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> Markup | None:
    if not curves:
        return None
    ends = (
        f"{name} from {curve[0][1]:.4g} at {curve[0][0]:g} to {curve[-1][1]:.4g} at "
        f"{curve[-1][0]:g}"
        for name, curve in curves.items()
    )
    return line_plot(ident, title, "; ".join(ends) or MISSING, curves)
