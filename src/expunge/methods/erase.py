"""Take out what can be taken out for nothing: the forget/retain filter, strong where nobody loses.

What a detector hides is still there, and a little training finds the way round it. A linear edit
removes it, but from everybody in proportion. How much of it is paid for depends on the site: in one
model the last sites can lose all of it without anybody noticing, in another every site only a
little. So level after level, from the strongest, the first site is looked for from which on those
that have none yet can have it, as long as neither retain subjects that the filter never saw nor
what the model said itself become less likely.

Forget and retain questions are looked at where the answer is predicted, since it is there that what
is known is turned into words; questions about nothing everywhere, since the sites are everybody's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from expunge.methods.base import ASIDE, OWN_SET, SAID_SET, Evidence, spread_over
from expunge.methods.filter_search import edits_at, scales_of, views_of
from expunge.passes import Passes
from expunge.plan import SiteEdit
from expunge.subspace import Views

LEVELS = (0.25, 1.0, 4.0, 16.0, 64.0)
LOST = 0.03
UNLIKELIER = 0.003
OTHERWISE = 0.2
ENERGY = 0.99


@dataclass(frozen=True)
class Erased:
    """What is taken out.

    Attributes:
        edits: The edits, by site key.
        shadow: The same, made without the subjects that are put aside.
        notes: Strength by site key, and the cost of every candidate as far as it was asked; JSON
            values.
    """

    edits: Mapping[str, SiteEdit] = field(default_factory=dict)
    shadow: Mapping[str, SiteEdit] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def over(self, ground: Mapping[str, Tensor]) -> Erased:
        """The same with changes of the biases of values; see `ground.grounds`."""
        edits, shadow = (
            dict(each) | {k: replace(each.get(k, SiteEdit()), ground=d) for k, d in ground.items()}
            for each in (self.edits, self.shadow)
        )
        return replace(self, edits=edits, shadow=shadow)


def erase(evidence: Evidence) -> Erased:
    """Find the strongest filter that costs nothing.

    Nothing is a rise in mean NLL of up to `LOST` nats a token for answers about retain subjects
    that the filter never saw, of up to the share `UNLIKELIER` for texts that the model said, and of
    up to `OTHERWISE` for its answers to questions about almost nothing: what retain subjects do not
    show, such as public figures and skills, is lost long before they lose anything.

    Args:
        evidence: With second moments of forget, of what is kept and of noise, of which it lets go;
            without any, nothing is taken out.
    """
    judge = evidence.judge
    assert judge is not None
    if not evidence.moments:
        return Erased(notes={"left out": "second moments do not fit the memory"})
    names = evidence.kept
    access = evidence.access
    assert access is not None
    keys = spread_over(access, evidence.sites)
    both = views_of(evidence, [names, [n for n in names if n != ASIDE]], keys=keys)
    if isinstance(evidence.moments, Passes):
        evidence.moments.let_go()
    start = judge.cost({})
    most = allowed(start)
    chosen = dict.fromkeys(both[0], 0.0)
    tried: list[dict[str, Any]] = []
    scales = scales_of(both[0]) if chosen else {}
    keys = list(chosen)
    end = len(keys)

    def free(first: int) -> bool:
        """Whether the present level costs nothing from a site on, up to those that have one."""
        levels = chosen | dict.fromkeys(keys[first:end], level)
        cost = judge.cost(_edits(evidence, both[1], scales, levels), most)
        tried.append({"level": level, "from": keys[first], "cost": dict(cost)})
        return all(nll <= most[name] for name, nll in cost.items())

    for level in reversed(LEVELS):
        begin = bisect_left(range(end), True, key=free)
        chosen |= dict.fromkeys(keys[begin:end], level)
        end = begin
    notes = {"start": dict(start), "levels": chosen, "tried": tried}
    final, shadow = (_edits(evidence, views, scales, chosen) for views in both)
    return Erased(final, shadow, notes)


def allowed(start: Mapping[str, float]) -> dict[str, float]:
    """The most that each mean NLL may come to, from what it is without edits."""
    rises = {SAID_SET: UNLIKELIER * start.get(SAID_SET, 0.0), OWN_SET: OTHERWISE}
    return {name: nll + rises.get(name, LOST) for name, nll in start.items()}


def _edits(
    evidence: Evidence,
    found: Mapping[str, Views],
    scales: Mapping[str, tuple[str, float]],
    levels: Mapping[str, float],
) -> dict[str, SiteEdit]:
    """The filter with a strength for each site; 0 leaves it out."""
    edits: dict[str, SiteEdit] = {}
    for key, level in levels.items():
        if level:
            same = {(c, ""): level for c in scales}
            edits |= edits_at(evidence, {key: found[key]}, scales, same, ENERGY)
    return {key: edit.gridded() for key, edit in edits.items()}
