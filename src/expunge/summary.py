"""From the figures of vanilla, unlearned and gold to the summary of a run; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from expunge import metrics
from expunge.data import CONDITIONS
from expunge.scores import counts, each_answer

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]

STILL = 0.5
"""A forget subject of whom this share of what vanilla answers is still answered is still known."""
ENOUGH = 6
"""Answers of vanilla about a subject; of fewer, luck alone often leaves half."""


def figure(model: Figures | None, name: str, condition: str, key: str = "accuracy") -> float | None:
    """One figure of one model, or None where it was not measured."""
    cell = (model or {}).get(name, {}).get(condition)
    if cell is None:
        return None
    return float(cell["all"]["accuracy"] if key == "accuracy" else cell[key])


def kept(vanilla: Figures, unlearned: Figures, name: str) -> dict[str, float]:
    """Unlearned over vanilla accuracy by condition, where vanilla has any."""
    found = {}
    for condition in CONDITIONS:
        before = figure(vanilla, name, condition)
        after = figure(unlearned, name, condition)
        if before and after is not None:
            found[condition] = after / before
    return found


def depth_of(vanilla: Figures, unlearned: Figures, gold: Figures | None) -> dict[str, float | None]:
    """Depth of forgetting by condition: over forget and test together, 1 is as deep as gold."""
    found: dict[str, float | None] = {}
    for condition in CONDITIONS:
        after, before = nll_of(unlearned, condition), nll_of(vanilla, condition)
        if after is not None and before is not None:
            found[condition] = metrics.depth(after, before, nll_of(gold, condition))
    return found


def still_known(vanilla: Figures, unlearned: Figures) -> dict[str, int]:
    """By condition, how many forget subjects are `STILL` known, which a mean over all may hide.

    Of those about whom vanilla gives `ENOUGH` answers. Conditions without figures by subject are
    left out.
    """
    found = {}
    for condition in CONDITIONS:
        before, after = (right_by_subject(m, condition) for m in (vanilla, unlearned))
        if before and len(before) == len(after):
            pairs = zip(before, after, strict=True)
            found[condition] = sum(b >= ENOUGH and a >= STILL * b for b, a in pairs)
    return found


def right_by_subject(model: Figures, condition: str) -> list[int]:
    """Right answers about each forget subject; none where figures by subject are lacking."""
    cell = model.get("forget", {}).get(condition, {})
    return [right for right, _ in counts(cell.get("subjects", ""))]


def nll_of(model: Figures | None, condition: str) -> float | None:
    """Mean answer NLL over forget and test, each set counting once, or None."""
    return _mean([figure(model, name, condition, "nll") for name in ("forget", "test")])


def summarise(models: Mapping[str, Figures]) -> dict[str, Any]:
    """The `summary` of results.json from the figures of each model."""
    vanilla, unlearned = models["vanilla"], models["unlearned"]
    summary: dict[str, Any] = {}
    for name in ("forget", "test"):
        scores = {c: figure(unlearned, name, c) for c in CONDITIONS}
        summary[f"{name}_accuracy"] = {c: s for c, s in scores.items() if s is not None}
    for name in ("retain", "neighbor"):
        summary[f"{name}_kept"] = kept(vanilla, unlearned, name)
    for name in ("real", "skills"):
        by_condition = kept(vanilla, unlearned, name)
        summary[f"{name}_kept"] = _mean(list(by_condition.values())) if by_condition else None
    both = list(summary["forget_accuracy"].values())
    summary["modality_gap"] = metrics.modality_gap(*both) if len(both) == 2 else None
    summary["depth"] = depth_of(vanilla, unlearned, models.get("gold"))
    summary["still_known"] = still_known(vanilla, unlearned)
    summary |= likelihood_of(models)
    summary["changed"] = changes(vanilla, unlearned)
    summary["collapsed"] = any(
        cell.get("collapse", {}).get("collapsed", False)
        and not _collapsed(vanilla, name, condition)
        for name, conditions in unlearned.items()
        for condition, cell in conditions.items()
    )
    return summary


def likelihood_of(models: Mapping[str, Figures]) -> dict[str, Any]:
    """By condition, the figures of TOFU.

    Forget quality and the Jensen-Shannon distance of truth ratios, both against gold, and the model
    utility of the edited model and of vanilla.
    """
    found: dict[str, dict[str, Any]] = {"forget_quality": {}, "js_distance": {}}
    for condition in CONDITIONS:
        ours, gold = (_ratios(models.get(name), condition) for name in ("unlearned", "gold"))
        if ours and gold:
            found["forget_quality"][condition] = metrics.forget_quality(ours, gold)
            found["js_distance"][condition] = metrics.js_distance(ours, gold)
    for name, model in (("model_utility", "unlearned"), ("vanilla_utility", "vanilla")):
        by_condition = {c: utility(models[model], c) for c in CONDITIONS}
        found[name] = {c: value for c, value in by_condition.items() if value is not None}
    return found


def _ratios(model: Figures | None, condition: str) -> list[float]:
    """Truth ratios on the forget set."""
    cell = (model or {}).get("forget", {}).get(condition, {})
    values = cell.get("truth_ratio", {}).get("values", ())
    return [math.inf if value is None else value for value in values]


def utility(model: Figures, condition: str) -> float | None:
    """Model utility over retain, real and skills, or None where none of them was asked."""
    values: list[float] = []
    for name in ("retain", "real", "skills"):
        cell = model.get(name, {}).get(condition)
        if cell is not None and "answer_probability" in cell:
            values += [cell["all"]["accuracy"], cell["answer_probability"]]
            ratio = cell.get("truth_ratio")
            values += [ratio["score"]] if ratio else []
    return metrics.model_utility(values) if values else None


def changes(vanilla: Figures, unlearned: Figures) -> dict[str, dict[str, Any]]:
    """By set and condition, accuracy of the edited model less vanilla's, paired by subject.

    Returns:
        set -> condition -> {"difference", "ci95", "p"}; see `metrics.paired_bootstrap`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, conditions in unlearned.items():
        for condition, cell in conditions.items():
            told = [
                each.get("subjects") for each in (cell, vanilla.get(name, {}).get(condition, {}))
            ]
            sides = [each_answer(each) for each in told if each]
            if len(sides) == 2 and sides[0][1] == sides[1][1]:
                (after, groups), (before, _) = sides
                paired = metrics.paired_bootstrap(after, before, groups)
                found.setdefault(name, {})[condition] = paired
    return found


def _collapsed(model: Figures, name: str, condition: str) -> bool:
    cell = model.get(name, {}).get(condition, {})
    return bool(cell.get("collapse", {}).get("collapsed", False))


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
