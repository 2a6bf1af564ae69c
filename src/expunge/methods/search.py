"""Search of strengths, by condition or finer: strongest forgetting inside a limit on the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from expunge.methods.base import FORGOTTEN, Part, Verdict

FACTOR = 2.0
BEHIND = 0.25
GUESSED = 0.02
UNEVEN = 0.065
ERRORS = 0.6
MOST = 0.2
ABOUT = 0.25
TEXTS = 10.0
COUNTED = (*FORGOTTEN, "guessed")

Strengths = Mapping[Part, float]
"""Part -> strength; what 1 means is the method's."""


@dataclass(frozen=True)
class Step:
    """One candidate of the search."""

    strengths: Strengths
    verdict: Verdict
    kept: float
    done: Mapping[Part, float]

    @classmethod
    def of(cls, strengths: Strengths, start: Verdict, now: Verdict, pace: Pace) -> Step:
        """A candidate with its verdict, against that on the unedited model."""
        return cls(strengths, now, kept_share(start, now), pace.done(now))

    @property
    def least(self) -> float:
        """How much is forgotten under the condition that is worse, the mean of its parts."""
        return min(by_condition(self.done).values(), default=1.0)

    @property
    def forgotten(self) -> bool:
        """Whether everything is forgotten under every condition."""
        return self.least >= 1


@dataclass(frozen=True)
class Pace:
    """How a search proceeds.

    Attributes:
        first: Strength of the first candidate of every part.
        rises: Candidates of growing strength at most.
        halvings: How often the last interval is halved.
        done: Verdict -> by part, how much is forgotten; 1 is everything.
        behind: A part that is further than another by more than this waits for it.
    """

    first: float
    rises: int
    halvings: int
    done: Callable[[Verdict], Mapping[Part, float]]
    behind: float = BEHIND


def search(
    judge: Callable[[Strengths], Verdict],
    start: Verdict,
    keep: float,
    steps: list[Step],
    pace: Pace,
) -> Strengths:
    """Find the strengths.

    Rises from weak ones by a constant factor, part by part: one that is forgotten stays where it
    is, and one that is ahead waits for the others. When everything is forgotten or the limit is
    passed, halves the last interval on a logarithmic scale.

    Args:
        judge: Strengths -> verdict.
        start: Verdict on the unedited model; its parts are those searched.
        keep: Least share of the held-out accuracy that must stay, under both conditions.
        steps: Filled with every candidate in the order tried.
        pace: First strength and numbers of candidates.

    Returns:
        Of the candidates inside the limit the weakest of those that forget, else the one whose
        least forgotten condition is furthest; all 0 if there is none.
    """
    parts = pace.done(start)

    def tried(strengths: Strengths) -> Step:
        steps.append(Step.of(strengths, start, judge(strengths), pace))
        return steps[-1]

    low: Strengths = dict.fromkeys(parts, 0.0)
    for rising in _rises(parts, tried, pace):
        if rising.forgotten or rising.kept < keep:
            high = rising.strengths
            for _ in range(pace.halvings):
                middle = tried(_between(low, high))
                if middle.forgotten or middle.kept < keep:
                    high = middle.strengths
                else:
                    low = middle.strengths
            break
        low = rising.strengths
    inside = [s for s in steps if s.kept >= keep]
    if not inside:
        return dict.fromkeys(parts, 0.0)
    done = [s for s in inside if s.forgotten]
    if done:
        return min(done, key=lambda s: math.fsum(map(math.log, s.strengths.values()))).strengths
    return max(inside, key=lambda s: s.least).strengths


def _rises(parts: Iterable[Part], tried: Callable[[Strengths], Step], pace: Pace) -> Iterator[Step]:
    """Candidates of growing strength."""
    strengths = dict.fromkeys(parts, pace.first)
    for _ in range(pace.rises):
        step = tried(strengths)
        yield step
        done = step.done
        least = min(done.values())
        strengths = {
            c: s * FACTOR if done[c] < 1 and done[c] <= least + pace.behind else s
            for c, s in strengths.items()
        }


def _between(low: Strengths, high: Strengths) -> Strengths:
    """The middle on a logarithmic scale, zero standing for a sixteenth of `high`."""
    return {c: math.sqrt((low[c] or high[c] / 16) * high[c]) for c in high}


def by_condition(values: Mapping[Part, float]) -> dict[str, float]:
    """The mean over the groups of subjects under each condition."""
    found: dict[str, list[float]] = {}
    for (condition, _), value in values.items():
        found.setdefault(condition, []).append(value)
    return {condition: sum(each) / len(each) for condition, each in found.items()}


def of_groups(now: Verdict, *, guessing: bool = False, errors: float = ERRORS) -> dict[Part, float]:
    """By condition and group of subjects: see `unknown`.

    Chance is allowed for only where the condition as a whole is forgotten: of many groups that are
    each a little over what chance may do, most are known.
    """
    whole = unknown(now, guessing=guessing)
    found = {}
    for group, verdict in now.apart.items():
        lenient, strict = (unknown(verdict, guessing=guessing, errors=e) for e in (errors, 0.0))
        for c, share in strict.items():
            found[c, group] = lenient[c] if whole.get(c, 0.0) >= 1 else share
    return found


def unknown(now: Verdict, *, guessing: bool = False, errors: float = ERRORS) -> dict[str, float]:
    """By condition: how near the model is to one that never knew, at most 1.

    Two signs, of which the weaker counts: how often the reference answer is not the greedy one,
    against strangers' answers, and how often a stranger's answer is the likelier of the two. Both
    are 1 already a little before they are even, by `GUESSED` and `UNEVEN` and by `errors` of a
    standard error, since they are shares of few questions; by no more than `MOST` together.

    Args:
        now: What is left.
        guessing: Whether it is enough to be right no oftener than one who guesses. A model that
            says things of the wrong kind is right about strangers less often than that, and so
            would be asked to know less than nothing.
        errors: Standard errors allowed for.
    """
    found = {}
    for condition, recalled in now.recalled.items():
        number = now.asked.get(condition)
        chance = now.other_recalled.get(condition, 0.0)
        even = 0.5 - min(MOST, UNEVEN + errors * standard_error(0.5, number))
        apart = errors * math.sqrt(2) * standard_error(chance, number)  # of a difference
        strange = 1 - chance - min(MOST, GUESSED + apart)
        if guessing:
            strange = min(strange, 1 - now.guessed.get(condition, 0.0))
        rank = (1 - now.likelier.get(condition, 0.5)) / even
        found[condition] = min(1.0, rank, (1 - recalled) / max(strange, GUESSED))
    return found


def finely(now: Verdict) -> dict[Part, float]:
    """By condition and group of subjects: how much is forgotten, where no answer changes too.

    The mean of `of_groups` without allowance and of `progress`; the former alone where nobody else
    could be asked about.
    """
    found = of_groups(now, errors=0.0)
    for condition, group in found:
        apart = now.apart[group]
        if apart.other_nll.get(condition, 0.0) > 0:
            more = progress(apart)[condition, ""]
            found[condition, group] = (found[condition, group] + more) / 2
    return found


def joined(before: Verdict, new: Verdict) -> Verdict:
    """A verdict with another in the place of what that was asked about.

    Of a condition under which something is new the whole is the mean over the groups, each by how
    much was asked about it.
    """

    def over(old: Verdict, newer: Mapping[str, Mapping[str, float]], **more: Any) -> Verdict:
        both: dict[str, Any] = {n: {**getattr(old, n), **newer[n]} for n in COUNTED}
        return replace(old, **both, **more)

    apart = dict(before.apart)
    for group, found in new.apart.items():
        apart[group] = over(apart[group], {name: getattr(found, name) for name in COUNTED})
    whole: dict[str, dict[str, float]] = {name: {} for name in COUNTED}
    for name, condition in product(COUNTED, new.asked):
        counted = [v for v in apart.values() if condition in getattr(v, name)]
        number = sum(v.asked[condition] for v in counted)
        if number:
            total = sum(v.asked[condition] * getattr(v, name)[condition] for v in counted)
            whole[name][condition] = total / number
    return over(before, whole, apart=apart)


def standard_error(share: float, number: int | None) -> float:
    """Standard error of a share of so many, one of each kind added; 0 where it is not known."""
    if not number:
        return 0.0
    share = (share * number + 1) / (number + 2)
    return math.sqrt(share * (1 - share) / number)


def progress(now: Verdict) -> dict[Part, float]:
    """By condition: loss on the reference answers over that on strangers' answers, at most 1."""
    return {
        (c, ""): min(1.0, now.nll[c] / now.other_nll[c]) if now.other_nll.get(c, 0) > 0 else 1.0
        for c in now.nll
    }


def kept_share(start: Verdict, now: Verdict) -> float:
    """Least share of what is to stay that is left.

    Of the held-out accuracy under each condition, and of what the unedited model said by itself
    (see `said_share`). As much accuracy as a standard error over the held-out subjects is not
    counted as lost: where they are few, one of them who resembles a forget subject would otherwise
    forbid every edit.
    """
    shares_left = [
        min(before, now.held_out[c] + now.held_out_error.get(c, 0.0)) / before
        for c, before in start.held_out.items()
        if before > 0
    ]
    return min([*shares_left, said_share(start, now)])


def said_share(start: Verdict, now: Verdict) -> float:
    """What is left of the texts that the unedited model said by itself, 0 to 1.

    1 less `TEXTS` times the share by which their probability a token has fallen: accuracy falls
    late, and a model that is a little worse everywhere is worse than one that forgot somebody. The
    geometric mean over texts but for those that lose most, `ABOUT` of them, since some may be about
    what is to be forgotten.
    """
    if not start.said:
        return 1.0
    lost = sorted(n - before for before, n in zip(start.said, now.said, strict=True))
    most = lost[: max(1, len(lost) - int(ABOUT * len(lost)))]
    share = min(1.0, math.exp(-math.fsum(most) / len(most)))
    return max(0.0, 1 - TEXTS * (1 - share))


def told(start: Verdict, steps: list[Step], chosen: Strengths, keep: float) -> dict[str, Any]:
    """The search as the log, the plan and the report tell it."""

    def row(strengths: Strengths, v: Verdict, kept: float, picked: bool) -> dict[str, Any]:
        """One line of the search table."""
        by = by_condition(strengths)
        return {
            "strength": math.prod(by.values()) ** (1 / len(by)) if by else 0.0,
            "strengths": by,
            "forget": dict(v.recalled),
            "forget_nll": dict(v.nll),
            "other_nll": dict(v.other_nll),
            "likelier": dict(v.likelier),
            "held_out_retain": dict(v.held_out),
            "kept": kept,
            "chosen": picked,
        }

    rows = [row({(c, ""): 0.0 for c in start.nll}, start, 1.0, not any(chosen.values()))]
    rows += [row(s.strengths, s.verdict, s.kept, s.strengths is chosen) for s in steps]
    least = 1 - (1 - keep) / TEXTS
    texts = (
        f" and texts that the model said by itself {least:.1%} of their probability a token (as far"
        " as it expects them)"
        if start.said
        else ""
    )
    return {
        "explanation": (
            "Candidates of growing strength were tried on the model, each condition with a strength"
            " of its own (the mean, where subjects have their own too). Of those under which"
            " everything is forgotten (the model answers like one"
            " that never knew) the weakest is taken, as long as retain subjects held out of the"
            f" statistics keep {keep:.0%} of their accuracy{texts}; if that limit comes first, the"
            " candidate inside it whose least forgotten condition is forgotten furthest."
        ),
        "limit": keep,
        "steps": rows,
    }
