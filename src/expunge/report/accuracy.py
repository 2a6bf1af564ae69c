"""Views of the measured figures: the dot plots, the big table, modality balance."""

from __future__ import annotations

from markupsafe import Markup

from expunge.data import TASKS
from expunge.report.charts import Point, dot_plot
from expunge.report.figures import (
    CONDITION_NAMES,
    MISSING,
    Table,
    between,
    flatten,
    percent,
    plain,
    short,
    whole,
)
from expunge.report.results import Results, Score


def condition_name(condition: str) -> str:
    """Plain words for a modality condition."""
    return CONDITION_NAMES.get(condition, condition)


def accuracy_table(results: Results) -> Table | None:
    """Accuracy of every model by set, condition and task, or None where nothing was measured."""
    rows = []
    for name in results.sets:
        for condition in results.conditions:
            for task in ("all", *TASKS):
                scores = {
                    model: results.score(model, name, condition, task) for model in results.models
                }
                found = [score for score in scores.values() if score is not None]
                if found:
                    cells = [_with_interval(score) for score in scores.values()]
                    head = [name, condition_name(condition), task]
                    rows.append([*head, *cells, _chance(found), _count(found)])
    columns = ["set", "condition", "task", *results.models, "chance", "questions"]
    caption = "Accuracy, with its 95 % interval over subjects in brackets"
    return Table(caption, columns, rows, heads=3) if rows else None


def pictures(results: Results) -> list[tuple[str, Markup]]:
    """One dot plot per condition: sets down, accuracy across, one mark per model."""
    plots = []
    for condition in results.conditions:
        series: dict[str, dict[str, Point]] = {}
        chance: dict[str, float] = {}
        for model in results.models:
            for name in results.sets:
                score = results.score(model, name, condition)
                if score is not None:
                    series.setdefault(model, {})[name] = _point(f"{name}, {model}", score)
                    if score.chance is not None:
                        chance.setdefault(name, score.chance)
        rows = [name for name in results.sets if any(name in points for points in series.values())]
        if rows:
            title = f"Asked with {condition_name(condition)}"
            desc = "Accuracy: " + "; ".join(
                points[name].note for name in rows for points in series.values() if name in points
            )
            ident = f"picture-{results.conditions.index(condition)}"
            plots.append((title, dot_plot(ident, title, desc, rows, series, chance)))
    return plots


def balance_table(results: Results) -> Table | None:
    """Forget accuracy under both conditions and their gap, per model and set of forget subjects."""
    rows = []
    for model in results.models:
        for name in ("forget", "test"):
            multi, text = (results.score(model, name, part) for part in ("multi", "text"))
            if multi is not None and text is not None:
                gap = percent(abs(multi.accuracy - text.accuracy))
                rows.append([model, name, _with_interval(multi), _with_interval(text), gap])
    columns = ["model", "set", *(condition_name(part) for part in ("multi", "text")), "gap"]
    caption = "Accuracy through each modality, with its 95 % interval; the gap is their difference"
    return Table(caption, columns, rows, heads=2) if rows else None


def balance_plot(results: Results) -> Markup | None:
    """Forget accuracy per model, one mark per condition, or None without both conditions."""
    series: dict[str, dict[str, Point]] = {}
    for condition in results.conditions:
        for model in results.models:
            score = results.score(model, "forget", condition)
            if score is not None:
                name = condition_name(condition)
                series.setdefault(name, {})[model] = _point(f"{model}, {name}", score)
    if len(series) < 2:
        return None
    rows = [model for model in results.models if any(model in part for part in series.values())]
    desc = "; ".join(point.note for part in series.values() for point in part.values())
    return dot_plot("balance", "Forget accuracy by modality", desc, rows, series)


def summary_table(results: Results) -> Table | None:
    """Every figure of the summary as it stands; what changed has a table of its own."""
    rows = []
    told = {name: value for name, value in results.summary.items() if name != "changed"}
    for name, value in flatten(told).items():
        rows.append([name.replace("_", " "), short(value)])
    caption = "Summary figures as they stand in results.json (shares from 0 to 1)"
    return Table(caption, ["figure", "value"], rows) if rows else None


def _with_interval(score: Score | None) -> str:
    if score is None:
        return MISSING
    ends = [f"{100 * end:.1f}" for end in (score.low, score.high) if end is not None]
    return between(percent(score.accuracy), ends)


def _chance(scores: list[Score]) -> str:
    return percent(next((score.chance for score in scores if score.chance is not None), None))


def _count(scores: list[Score]) -> str:
    return plain(next((score.n for score in scores if score.n is not None), None))


def _point(label: str, score: Score) -> Point:
    ends = [f"{100 * end:.0f}" for end in (score.low, score.high) if end is not None]
    shown = between(whole(score.accuracy), ends)
    return Point(score.accuracy, score.low, score.high, f"{label} {_with_interval(score)}", shown)
