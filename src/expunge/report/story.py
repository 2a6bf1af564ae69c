"""Views of everything around the figures: the request, attacks, content, provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from expunge.data import SETS
from expunge.errors import InputError
from expunge.report.charts import Point, dot_plot
from expunge.report.curves import line_plot
from expunge.report.figures import (
    MISSING,
    Table,
    as_list,
    as_map,
    between,
    figure,
    flatten,
    ordered,
    percent,
    plain,
    short,
)
from expunge.report.folder import Run
from expunge.report.results import MODELS
from expunge.report.search import chosen_strength

SLASH = re.compile(r"[/\\]")
HASH = re.compile(r"[0-9a-f]{8,64}")
WITHHELD = "withheld"
LETTER = 6.6
"""About how wide a letter of a chart is."""
PRIVATE = {*SETS, "data", "subject", "subjects"}
PUBLIC = {"data_format"}
SETTINGS = ("budget", "strength")
CHECKPOINTS = ("model", "gold")
CONTENT = ("subject", "question", "vanilla", "unlearned", "gold")
Header = Mapping[str, Any]


def request_table(run: Run, header: Header) -> Table:
    """What was asked and made: method, model, size of the sets, settings, extent of the edit."""
    config = {**as_map(run.config, "config.yaml"), **as_map(header.get("config"), "plan config")}
    data = as_map(header.get("data"), "plan data")
    base = as_map(header.get("base"), "plan base")
    rows = [["method", plain(run.results.data.get("method") or header.get("method"))]]
    for name, title in (("id", "base model"), ("model_type", "model type")):
        if base.get(name):
            rows.append([title, plain(base[name])])
    for name in ("forget", "retain"):
        part = as_map(data.get(name), f"plan data {name}")
        rows.append([f"questions to {name}", plain(part.get("n"))])
        subjects = part.get("subjects")
        count = subjects if isinstance(subjects, int) or subjects is None else len(subjects)
        rows.append([f"subjects to {name}", plain(count)])
    asked = {name: config.get(name) for name in (*SETTINGS, *(["keep"] if run.search else []))}
    rows += [[name, plain(value)] for name, value in asked.items() if value is not None]
    found = chosen_strength(run.search)
    if found is not None:
        rows.append(["strength found by search", short(found)])
    size = as_map(run.results.data.get("plan"), "results.json plan")
    rows += [[f"plan {name}", plain(value)] for name, value in size.items()]
    seed = run.results.data.get("seed", header.get("seed"))
    rows += [
        [n, plain(v)] for n, v in (("seed", seed), ("date", header.get("date"))) if v is not None
    ]
    return Table("The request and the plan made for it", ["item", "value"], rows)


def facts(run: Run, header: Header) -> list[str]:
    """The run in a few words: base model, what was to be forgotten, seed, date, version."""
    base = as_map(header.get("base"), "plan base")
    forget = as_map(as_map(header.get("data"), "plan data").get("forget"), "plan data forget")
    subjects = forget.get("subjects")
    seed = run.results.data.get("seed", header.get("seed"))
    version = as_map(run.results.data.get("versions"), "results.json versions").get("expunge")
    found = {
        "base model {}": base.get("id") or base.get("model_type"),
        "{} subjects": len(subjects) if isinstance(subjects, list) else subjects,
        "{} questions to forget": forget.get("n"),
        "seed {}": seed,
        "{}": header.get("date"),
        "expunge {}": version,
    }
    return [words.format(plain(value)) for words, value in found.items() if value is not None]


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


def attack_views(attacks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One view per attack: title, note, table and, where there are curves, a picture."""
    views = []
    for number, (kind, entry) in enumerate(attacks.items()):
        where = f"attacks.json {kind}"
        entry = as_map(entry, where)
        title = str(entry.get("title") or kind)
        columns = [str(name) for name in as_list(entry.get("columns"), f"{where} columns")]
        axes = [str(name) for name in as_list(entry.get("axes"), f"{where} axes")]
        rows = [
            [short(cell) for cell in as_list(row, f"{where} rows")]
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
                "table": Table(title, *_with_intervals(columns, rows)) if rows else None,
                "picture": _curve_plot(f"attack-{number}", title, curves, axes)
                or _dots(f"attack-{number}", title, as_map(entry.get("dots"), f"{where} dots")),
            }
        )
    return views


def attack_summary(attacks: Mapping[str, Any]) -> Table | None:
    """The headline figures of all attacks, or None where there are none."""
    rows = []
    for kind, entry in attacks.items():
        entry = as_map(entry, f"attacks.json {kind}")
        figures = as_map(entry.get("figures"), f"attacks.json {kind} figures")
        title = str(entry.get("title") or kind)
        rows += [[title, str(name), short(value)] for name, value in figures.items()]
    return (
        Table(
            "What the attacks brought back (0 or less: nothing)",
            ["attack", "figure", "value"],
            rows,
        )
        if rows
        else None
    )


def _with_intervals(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Print the columns `low` and `high` as an interval behind the figure before them."""
    at = next((i for i in range(1, len(columns)) if list(columns[i : i + 2]) == ["low", "high"]), 0)
    if not at:
        return list(columns), [list(row) for row in rows]
    joined = [
        [*row[: at - 1], f"{row[at - 1]} [{row[at]}, {row[at + 1]}]", *row[at + 2 :]]
        for row in rows
    ]
    return [*columns[:at], *columns[at + 2 :]], joined


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
        parts[title] = flatten(values if show_content else hide(_named(values)))
    seconds = as_map(run.results.data.get("seconds"), "results.json seconds")
    parts["Time"] = {f"{name}, seconds": short(value) for name, value in seconds.items()}
    tables = [
        Table(title, ["item", "value"], [[name, plain(value)] for name, value in values.items()])
        for title, values in parts.items()
        if values
    ]
    return [*tables, *_versions(run, header)]


def _versions(run: Run, header: Header) -> list[Table]:
    """Library versions when the plan was made and when it was evaluated, side by side."""
    planned = as_map(header.get("versions"), "plan versions")
    measured = as_map(run.results.data.get("versions"), "results.json versions")
    rows = [
        [name, plain(planned.get(name)), plain(measured.get(name))]
        for name in {**planned, **measured}
    ]
    return [Table("Versions", ["library", "plan", "evaluation"], rows)] if rows else []


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """Name checkpoints on this machine by their folder alone; a hub id stays as it is."""
    named = dict(values)
    for name in CHECKPOINTS:
        value = named.get(name)
        if isinstance(value, str) and (
            value[:1] in ("/", ".", "~") or len(SLASH.findall(value)) > 1
        ):
            named[name] = SLASH.split(value.rstrip("/\\"))[-1]
    return named


def hide(value: Any, *, private: bool = False) -> Any:
    """Withhold every text that stands under the name of a data set: paths may name a subject."""
    if isinstance(value, Mapping):
        return {
            name: hide(
                item,
                private=private or name not in PUBLIC and str(name).split("_")[0] in PRIVATE,
            )
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [hide(item, private=private) for item in value]
    return f"({WITHHELD})" if private and isinstance(value, str) else value


def _dots(ident: str, title: str, dots: Mapping[str, Any]) -> Markup | None:
    """Shares by model, one row for every way of asking."""
    where, series = f"{title} dots", {}
    for model in ordered(MODELS, dots):
        series[model] = {
            str(label): _spot(f"{model}, {label}", as_list(ends, where), where)
            for label, ends in as_map(dots[model], where).items()
        }
    rows = list(dict.fromkeys(label for points in series.values() for label in points))
    if not rows:
        return None
    desc = "; ".join(point.note for points in series.values() for point in points.values())
    wide = LETTER * max(len(row) for row in rows) + 20
    return dot_plot(ident, title, desc, rows, series, axis="share", left=wide)


def _spot(label: str, ends: Sequence[Any], where: str) -> Point:
    value, low, high = [*(figure(end, where) for end in ends), None, None][:3]
    if value is None:
        raise InputError(f"{where} has no number for {label}; run the attack again")
    told = between(percent(value), [percent(end) for end in (low, high) if end is not None])
    return Point(value, low, high, f"{label}: {told}", percent(value))


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
    ident: str,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    axes: Sequence[str],
) -> Markup | None:
    if not curves:
        return None
    ends = (
        f"{name} from {curve[0][1]:.3g} at {curve[0][0]:g} to {curve[-1][1]:.3g} at "
        f"{curve[-1][0]:g}"
        for name, curve in curves.items()
    )
    across, up = axes if len(axes) == 2 else ("", "")
    models = [next((m for m in MODELS if m in name.split(", ")), None) for name in curves]
    hues = [MODELS.index(m) for m in models if m is not None]
    hues = hues if len(hues) == len(curves) else []
    desc = "; ".join(ends) or MISSING
    return line_plot(ident, title, desc, curves, (across, up), hues=hues)
