"""What every attack has in common: whom it attacks, with which questions, and its table."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge import metrics
from expunge.data import CONDITIONS, Example, Suite
from expunge.evaluate import ask
from expunge.models import Prompter
from expunge.plan import Plan

ASKED_WITH = {"multi": "image + text", "text": "text only"}
MODELS = ("vanilla", "unlearned", "gold")
COLUMNS = (
    "variant",
    "set",
    "asked with",
    "questions",
    "vanilla",
    "unlearned",
    "low",
    "high",
    "gold",
    "recovered",
    "above gold",
)
READING = (
    "Accuracy; low to high, or in brackets: unlearned's 95 % interval over subjects. Recovered:"
    " unlearned under this variant less unlearned under the first; above gold: the same less gold's"
    " gain."
)


@dataclass(frozen=True)
class Candidate:
    """A model under attack.

    Attributes:
        name: `vanilla`, `unlearned` or `gold`.
        model: The model, in evaluation mode.
        prompter: How its conversations are rendered.
    """

    name: str
    model: Any
    prompter: Prompter


@dataclass(frozen=True)
class Context:
    """Everything an attack may use.

    Attributes:
        models: `vanilla`, `unlearned` and, where there is one, `gold`; an attack changes copies.
        suite: The question sets of the run.
        remake: Makes a plan as the run did, for another forget set.
        seed: Of every draw.
        size: Most questions asked per set and condition.
        batch_size: Questions per forward pass.
    """

    models: Mapping[str, Candidate]
    suite: Suite
    remake: Callable[[Sequence[Example]], Plan]
    seed: int = 0
    size: int = 64
    batch_size: int = 64

    def sample(
        self, name: str, condition: str | None = None, size: int | None = None
    ) -> list[Example]:
        """At most `size` questions of a set that can be asked under `condition`, in order."""
        rows = self.suite.sets.get(name, ())
        return self.draw([e for e in rows if condition is None or e.has(condition)], size)

    def draw(self, examples: Sequence[Example], size: int | None = None) -> list[Example]:
        """At most `size` of the given questions, in order; a function of the seed."""
        size = self.size if size is None else size
        if len(examples) <= size:
            return list(examples)
        chosen = random.Random(self.seed).sample(range(len(examples)), size)
        return [examples[i] for i in sorted(chosen)]


Result = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """One row of the table of attacks.

    Attributes:
        name: Name on the command line.
        about: One line.
        run: Context -> {"title", "columns", "rows", "note"} and, for some, "curves" (name ->
            points) with their "axes" (x, y), or "dots" (model -> label -> value, low, high), and
            "figures" (name -> number); nothing in it quotes the question sets.
        needs: Sets without which there is nothing to measure; of several together, one.
    """

    name: str
    about: str
    run: Callable[[Context], Result]
    needs: tuple[str | tuple[str, ...], ...] = ("forget",)

    def lacking(self, sets: Container[str]) -> list[str]:
        """What is needed and not there."""
        either = [(need,) if isinstance(need, str) else need for need in self.needs]
        return [" or ".join(some) for some in either if not any(name in sets for name in some)]


Scorer = Callable[[Candidate, Sequence[Example], str], list[float]]
Rewrite = Callable[[Example, str], Example]


def asking(context: Context, rewrite: Rewrite | None = None) -> Scorer:
    """A scorer that asks the questions, rewritten where that is wanted: 1 right, 0 wrong."""

    def score(candidate: Candidate, examples: Sequence[Example], condition: str) -> list[float]:
        asked = [rewrite(e, condition) for e in examples] if rewrite else list(examples)
        rows = ask(
            candidate.model, candidate.prompter, asked, condition, batch_size=context.batch_size
        )
        return [float(row.right) for row in rows]

    return score


def compared(
    context: Context,
    variants: Mapping[str, Scorer],
    *,
    sets: Sequence[str] = ("forget", "test"),
    conditions: Sequence[str] = CONDITIONS,
) -> list[list[Any]]:
    """Rows of `COLUMNS`: every variant on every set and condition, beside vanilla and gold.

    Args:
        context: Models and questions.
        variants: Name -> scorer; the first is what recovery is measured against.
        sets: Sets to ask; absent ones are left out.
        conditions: Conditions to ask under.
    """
    rows: list[list[Any]] = []
    for name in sets:
        for condition in conditions:
            examples = context.sample(name, condition)
            if not examples:
                continue
            groups = [e.subject for e in examples]
            first: dict[str, float] = {}
            for label, score in variants.items():
                scores = {k: score(c, examples, condition) for k, c in context.models.items()}
                means = {k: sum(s) / len(s) for k, s in scores.items()}
                first = first or means
                low, high = metrics.bootstrap_ci(scores["unlearned"], groups, seed=context.seed)
                gains = {k: means[k] - first[k] for k in means}
                rows.append(
                    [label, name, ASKED_WITH[condition], len(examples), means["vanilla"],
                     means["unlearned"], low, high, means.get("gold"), gains["unlearned"],
                     gains["unlearned"] - gains["gold"] if "gold" in gains else None]
                )  # fmt: skip
    return rows


def worst(rows: Sequence[Sequence[Any]], column: str = "recovered") -> float | None:
    """The largest figure of one of `COLUMNS`, or None where there is none."""
    place = COLUMNS.index(column)
    found = [row[place] for row in rows if row[place] is not None]
    return max(found) if found else None


def forgotten_only(rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """The rows about forget subjects."""
    return [row for row in rows if row[COLUMNS.index("set")] in ("forget", "test")]


def table(title: str, rows: Sequence[Sequence[Any]], note: str) -> Result:
    """The result of an attack whose rows are those of `compared`."""
    about = forgotten_only(rows)
    return {
        "title": title,
        "columns": list(COLUMNS),
        "rows": [list(row) for row in rows],
        "dots": dots(rows),
        "note": f"{note} {READING}",
        "figures": {
            "most recovered": worst(about),
            "most above gold": worst(about, "above gold"),
        },
    }


def dots(rows: Sequence[Sequence[Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Rows about the forget set as points: model -> variant and condition -> value, low, high."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        cells = dict(zip(COLUMNS, row, strict=True))
        if cells["set"] != "forget":
            continue
        for model in MODELS:
            if cells[model] is not None:
                ends = [cells["low"], cells["high"]] if model == "unlearned" else [None, None]
                label = f"{cells['variant']}, {cells['asked with']}"
                found.setdefault(model, {})[label] = [cells[model], *ends]
    return found


def finite(value: Any) -> Any:
    """The value as JSON can hold it: infinities and NaN become None, at any depth."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
