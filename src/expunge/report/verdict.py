"""The verdict: one sentence and one plain word, worked out from the figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.data import SETS
from expunge.report.figures import CONDITION_NAMES, ordered, percent, whole
from expunge.report.results import Results

FORGOTTEN = 0.8
PARTLY = 0.3
DEEP = 0.5
KEPT = 0.9
HARMED = 0.7
KNOWN = 0.05
WORDS = ("hardly forgotten", "partly forgotten", "forgotten")
SIGNS = {"good": "✔", "mixed": "◐", "bad": "✖", "unknown": "?"}


@dataclass(frozen=True)
class Forgetting:
    """How far one set went under one condition.

    Attributes:
        name: `forget` or `test`.
        condition: `multi` or `text`.
        vanilla: Accuracy before.
        unlearned: Accuracy after.
        low: Lower end of the 95 % interval after (equal to `unlearned` where there is none).
        high: Upper end of the 95 % interval after (equal to `unlearned` where there is none).
        floor: Accuracy of a model that never knew.
        floor_name: Where the floor is from: `gold`, `chance` or `zero`.
    """

    name: str
    condition: str
    vanilla: float
    unlearned: float
    low: float
    high: float
    floor: float
    floor_name: str

    @property
    def known(self) -> bool:
        """Whether vanilla was clearly above the floor, so that there was something to forget."""
        return self.vanilla - self.floor > KNOWN

    def share(self, accuracy: float) -> float:
        """Part of the way from vanilla down to the floor at which `accuracy` lies."""
        return (self.vanilla - accuracy) / (self.vanilla - self.floor)


@dataclass(frozen=True)
class Verdict:
    """What the report says first.

    Attributes:
        word: The judgement, such as `Forgotten, the rest kept`.
        reasons: The figures behind it, a sentence each.
        tone: `good`, `mixed`, `bad` or `unknown`.
    """

    word: str
    reasons: tuple[str, ...]
    tone: str

    @property
    def sign(self) -> str:
        """A sign that says the same as the tone without colour."""
        return SIGNS[self.tone]


def judge(share: float) -> int:
    """Position in `WORDS` for a share of the way to the floor (0.8 and 0.3 are the limits)."""
    return 2 if share >= FORGOTTEN else 1 if share >= PARTLY else 0


def forgetting(results: Results) -> list[Forgetting]:
    """Measure every condition of `forget` and `test` for which vanilla and unlearned are known."""
    found = []
    for name in ("forget", "test"):
        for condition in results.conditions:
            vanilla = results.score("vanilla", name, condition)
            unlearned = results.score("unlearned", name, condition)
            if vanilla is None or unlearned is None:
                continue
            floor, floor_name = _floor(results, name, condition)
            low, high = (
                unlearned.accuracy if end is None else end
                for end in (unlearned.low, unlearned.high)
            )
            found.append(
                Forgetting(
                    name,
                    condition,
                    vanilla.accuracy,
                    unlearned.accuracy,
                    low,
                    high,
                    floor,
                    floor_name,
                )
            )
    return found


def kept(results: Results) -> list[tuple[str, float]]:
    """Return (what, unlearned / vanilla accuracy) for every other set.

    The summary's own figure is used where it is given, otherwise the quotient is worked out.
    """
    found = []
    for name in ordered(SETS, {*SETS, *results.sets} - {"forget", "test"}):
        shares = results.summary_by_condition(f"{name}_kept") or _quotients(results, name)
        for condition, share in shares.items():
            label = CONDITION_NAMES.get(condition, condition)
            found.append((name if condition == "all" else f"{name}, {label}", share))
    return found


def verdict(results: Results) -> Verdict:
    """Judge the run.

    The word follows the least forgotten of the sets and conditions; if the answers' likelihood
    went less than half as deep as gold's, or one of the subjects is still known, it is at most
    `partly forgotten`. A collapsed model is never called forgotten.
    """
    measured = forgetting(results)
    if not measured:
        return Verdict(
            "No verdict",
            ("results.json does not hold the forget accuracy of both vanilla and unlearned.",),
            "unknown",
        )
    rest = kept(results)
    reasons = [*_fallen(measured), *_known(results), *_depth(results)]
    reasons += [*_kept_words(rest), *_doubt(measured)]
    if results.summary.get("collapsed") is True:
        word, tone = "Collapsed", "bad"
        reasons.insert(0, "The answers are garbage, so a low accuracy is no sign of forgetting")
    else:
        word, tone = _word(results, measured, rest)
    return Verdict(word, tuple(f"{reason}." for reason in reasons), tone)


def _floor(results: Results, name: str, condition: str) -> tuple[float, str]:
    gold = results.score("gold", name, condition)
    if gold is not None:
        return gold.accuracy, "gold"
    for model in ("vanilla", "unlearned"):
        score = results.score(model, name, condition)
        if score is not None and score.chance is not None:
            return score.chance, "chance"
    return 0.0, "zero"


def _quotients(results: Results, name: str) -> dict[str, float]:
    shares = {}
    for condition in results.conditions:
        vanilla = results.score("vanilla", name, condition)
        unlearned = results.score("unlearned", name, condition)
        if vanilla is not None and unlearned is not None and vanilla.accuracy > 0:
            shares[condition] = unlearned.accuracy / vanilla.accuracy
    return shares


def _word(
    results: Results, measured: Sequence[Forgetting], rest: Sequence[tuple[str, float]]
) -> tuple[str, str]:
    known = [item for item in measured if item.known]
    if not known:
        return "Nothing to forget, vanilla hardly knew it", "unknown"
    level = min(judge(item.share(item.unlearned)) for item in known)
    depth = results.summary_by_condition("depth")
    shallow = depth and min(depth.values()) < DEEP
    if shallow or any(results.summary_by_condition("still_known").values()):
        level = min(level, 1)
    word = WORDS[level].capitalize()
    if not rest:
        return f"{word}, what was kept is not known", "bad" if level == 0 else "mixed"
    least = min(share for _, share in rest)
    if least >= KEPT:
        return f"{word}, the rest kept", ("bad", "mixed", "good")[level]
    if least >= HARMED:
        return f"{word}, the rest partly harmed", ("bad", "mixed", "mixed")[level]
    return f"{word}, the rest badly harmed", "bad"


def _fallen(measured: Sequence[Forgetting]) -> list[str]:
    titles = {"forget": "On the forget set", "test": "On unseen questions about the same subjects"}
    clauses = []
    for name, title in titles.items():
        parts = [_one(item) for item in measured if item.name == name]
        if parts:
            clauses.append(f"{title} accuracy went {' and '.join(parts)}")
    return clauses


def _one(item: Forgetting) -> str:
    floor = f"{item.floor_name} {whole(item.floor)}"
    if item.known:
        floor = f"{percent(item.share(item.unlearned), 0)} of the way to {floor}"
    condition = CONDITION_NAMES.get(item.condition, item.condition)
    ends = f" [{100 * item.low:.0f}, {100 * item.high:.0f}]" if item.high > item.low else ""
    now = f"{whole(item.unlearned)}{ends}"
    return f"from {whole(item.vanilla)} to {now} under {condition} ({floor})"


def _known(results: Results) -> list[str]:
    """How many forget subjects are still known, where any is."""
    known = results.summary_by_condition("still_known")
    parts = [f"{int(n)} under {CONDITION_NAMES.get(c, c)}" for c, n in known.items() if n]
    return [f"Forget subjects still known for half or more: {' and '.join(parts)}"] if parts else []


def _depth(results: Results) -> list[str]:
    depth = results.summary_by_condition("depth")
    parts = [
        f"{percent(share, 0)} ({CONDITION_NAMES.get(name, name)})" for name, share in depth.items()
    ]
    return [f"The loss on its answers rose {' and '.join(parts)} as far as gold's"] if parts else []


def _kept_words(rest: Sequence[tuple[str, float]]) -> list[str]:
    if not rest:
        return ["Nothing was measured on what should be kept"]
    parts = [f"{percent(share)} ({label})" for label, share in rest]
    return ["Of vanilla's accuracy it kept " + ", ".join(parts)]


def _doubt(measured: Sequence[Forgetting]) -> list[str]:
    """Name the condition whose interval reaches furthest into a worse judgement."""
    known = [item for item in measured if item.known]
    if not known:
        return []
    level = min(judge(item.share(item.unlearned)) for item in known)
    worst = min(known, key=lambda item: item.share(item.high))
    upper = judge(worst.share(worst.high))
    if upper >= level:
        return []
    condition = CONDITION_NAMES.get(worst.condition, worst.condition)
    return [
        f"At the upper end of the 95 % interval ({worst.name}, {condition}: "
        f"{whole(worst.high)}) it would be {WORDS[upper]}"
    ]
