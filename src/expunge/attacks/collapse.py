"""Collapse guard: whether the unlearned model still answers in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expunge import metrics
from expunge.attacks.base import ASKED_WITH, Attack, Candidate, Context, Result
from expunge.data import CONDITIONS, Example
from expunge.evaluate import answer_length, generate, teacher_forced

SETS = ("forget", "test", "retain", "neighbor")
SHARES = ("repetition", "most_common", "empty")
COLUMNS = ("n", "mean_length", "repetition", "most_common", "empty", "perplexity")


def answers(
    context: Context, candidate: Candidate, examples: Sequence[Example], condition: str
) -> list[str]:
    """Greedy answers to the questions."""
    room = answer_length(candidate.prompter, examples)
    return generate(
        candidate.model,
        candidate.prompter,
        examples,
        condition,
        max_new_tokens=room,
        batch_size=context.batch_size,
    )


def surprise(
    context: Context, examples: Sequence[Example], said: Sequence[str], condition: str
) -> list[float] | None:
    """Mean NLL of each answer under vanilla, nats per token; None where all are blank."""
    told = [(e, s) for e, s in zip(examples, said, strict=True) if s.strip()]
    vanilla = context.models["vanilla"]
    forced = teacher_forced(
        vanilla.model,
        vanilla.prompter,
        [e for e, _ in told],
        condition,
        answers=[s for _, s in told],
        batch_size=context.batch_size,
    )
    return [f.nll for f in forced] or None


def run(context: Context) -> Result:
    """Describe the answers of every model on every set."""
    rows: list[list[Any]] = []
    points: dict[str, dict[str, list[float]]] = {}
    collapsed = False
    for name in SETS:
        for condition in CONDITIONS:
            examples = [e for e in context.sample(name, condition) if not e.choices]
            if not examples:
                continue
            said = {k: answers(context, c, examples, condition) for k, c in context.models.items()}
            nll = {k: surprise(context, examples, s, condition) for k, s in said.items()}
            usual = [e.answer for e in examples]
            for model in said:
                report = metrics.collapse_report(
                    said[model], usual, nll[model], nll.get("gold") or nll["vanilla"]
                )
                cells = [report[c] for c in COLUMNS]
                reasons = ", ".join(report["reasons"]) or None
                rows.append([name, ASKED_WITH[condition], model, *cells, reasons])
                for share in SHARES if name == "forget" else ():
                    label = f"{share.replace('_', ' ')}, {ASKED_WITH[condition]}"
                    points.setdefault(model, {})[label] = [report[share]]
                collapsed |= model == "unlearned" and report["collapsed"]
    return {
        "title": "Collapse guard",
        "columns": ["set", "asked with", "model", "answers", "mean length", "repetition",
                    "commonest", "empty", "perplexity under vanilla", "collapsed by"],
        "rows": rows,
        "dots": points,
        "note": (
            "Answers to open questions. "
            + ("UNLEARNED HAS COLLAPSED." if collapsed else "Unlearned has not collapsed.")
            + " Usual is what the reference answers show; perplexity counts against gold's answers"
            " (vanilla's without a gold)."
        ),
        "figures": {"collapsed": float(collapsed)},
    }  # fmt: skip


ATTACK = Attack("collapse", "repetition, length and perplexity of the answers", run)
