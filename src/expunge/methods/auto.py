"""The default method: the forget/retain filter, its strength found on held-out retain subjects.

Directions come from forward passes alone. The retain subjects are divided into folds. Candidates
of growing strength are carried out and judged: how much of the forget set is still recalled, how
likely its answers still are, and, with each fold in turn left out of the statistics, what the
subjects of that fold lose: they stand for the neighbours that no user can list. The weakest
candidate after which the reference answers are no likelier than strangers' is taken; if the limit
`keep` on the left-out subjects comes first, the strongest one inside it.

Directions whose forget/retain ratio is below `ONSET` are let be, since both sets share them; the
others are removed and a little reversed (`OVERSHOOT`): for the same depth that costs neighbours
less than removing more directions (docs/experiments.md). Questions of random tokens with scrambled
pictures count among what is kept, as a stand-in for everything that no retain set shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.config import RunConfig
from expunge.methods.base import Evidence, Method, Outcome, Verdict
from expunge.methods.filters import edits_for, site_directions
from expunge.plan import SiteEdit
from expunge.subspace import Directions, shares

RIDGE = 0.03
ONSET = 2.0
OVERSHOOT = 1.0
NOISE = 0.5
FIRST = 0.03
FACTOR = 3.0
RISES = 6
HALVINGS = 3
NUMBER = 128


@dataclass(frozen=True)
class Step:
    """One candidate of the search."""

    strength: float
    verdict: Verdict
    kept: float
    forgotten: bool


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Build the directions, and search their strength unless it is given."""
    folds = sorted({name for name, _ in evidence.moments} - {"forget", "noise"})
    kept = [folds]
    if config.strength is None:
        kept += [[f for f in folds if f != left] for left in folds]
    final, *without = site_directions(evidence, RIDGE, kept, NUMBER, NOISE)
    scores = {key: d.ratio for key, d in final.items()}
    if config.strength is not None:
        return Outcome(_edits(evidence, final, config.strength), scores)
    assert evidence.judge is not None
    judge = evidence.judge
    start = judge({}, [{}] * len(folds))
    steps: list[Step] = []

    def tried(strength: float) -> Verdict:
        candidates = [_edits(evidence, found, strength) for found in (final, *without)]
        return judge(candidates[0], candidates[1:])

    chosen = search(tried, start, config.keep, steps)
    told = _told(start, steps, chosen, config.keep)
    return Outcome(_edits(evidence, final, chosen), scores, {"search": told})


def _edits(
    evidence: Evidence, found: Mapping[str, Directions], strength: float
) -> dict[str, SiteEdit]:
    removed = {key: (1 + OVERSHOOT) * shares(d.ratio, strength, ONSET) for key, d in found.items()}
    return edits_for(evidence, found, removed)


def search(
    judge: Callable[[float], Verdict], start: Verdict, keep: float, steps: list[Step]
) -> float:
    """Find the strength.

    Rises from a weak candidate by a constant factor until the forget set is forgotten or the
    limit is passed, then halves the last interval on a logarithmic scale.

    Args:
        judge: Strength -> verdict.
        start: Verdict on the unedited model.
        keep: Least share of the held-out accuracy that must stay, under both conditions.
        steps: Filled with every candidate in the order tried.

    Returns:
        The weakest strength that forgets inside the limit, else the strongest inside it; 0 if
        even the first is outside.
    """

    def tried(strength: float) -> Step:
        verdict = judge(strength)
        step = Step(strength, verdict, kept_share(start, verdict), is_forgotten(verdict))
        steps.append(step)
        return step

    low, high = 0.0, 0.0
    strength = FIRST
    for _ in range(RISES):
        step = tried(strength)
        if step.forgotten or step.kept < keep:
            high = strength
            break
        low, strength = strength, strength * FACTOR
    if not high:
        return low
    for _ in range(HALVINGS):
        middle = (max(low, FIRST / FACTOR) * high) ** 0.5
        step = tried(middle)
        if step.forgotten or step.kept < keep:
            high = middle
        else:
            low = middle
    inside = [s for s in steps if s.kept >= keep]
    done = [s.strength for s in inside if s.forgotten]
    return min(done) if done else max((s.strength for s in inside), default=0.0)


def kept_share(start: Verdict, now: Verdict) -> float:
    """Least share over conditions of the held-out accuracy that is left."""
    shares_left = [now.held_out[c] / before for c, before in start.held_out.items() if before > 0]
    return min(shares_left, default=1.0)


def is_forgotten(now: Verdict) -> bool:
    """Whether under every condition the reference answers are no likelier than strangers'."""
    return all(now.nll[c] >= now.other_nll[c] for c in now.nll)


def _told(start: Verdict, steps: list[Step], chosen: float, keep: float) -> dict[str, Any]:
    def row(strength: float, v: Verdict, kept: float, picked: bool) -> dict[str, Any]:
        """One line of the search table."""
        return {
            "strength": strength,
            "forget": dict(v.recalled),
            "forget_nll": dict(v.nll),
            "other_nll": dict(v.other_nll),
            "held_out_retain": dict(v.held_out),
            "kept": kept,
            "chosen": picked,
        }

    rows = [row(0.0, start, 1.0, chosen == 0.0)]
    rows += [row(s.strength, s.verdict, s.kept, s.strength == chosen) for s in steps]
    return {
        "explanation": (
            "Candidates of growing strength were tried on the model. Taken is the weakest after"
            " which the reference answers are no likelier than other subjects' answers, as long as"
            f" retain subjects held out of the statistics keep {keep:.0%} of their accuracy; if"
            " that limit comes first, the strongest candidate inside it."
        ),
        "limit": keep,
        "steps": rows,
    }


METHOD = Method(
    name="auto",
    about="forget/retain filter, strength found by search on held-out retain subjects (default)",
    decide=decide,
    moments=True,
    directions=NUMBER,
    folds=5,
    noise=True,
    positions="no_image",
    towers=("language",),
)
