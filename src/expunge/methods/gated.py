"""The default method: neurons nobody needs become detectors of the forget set, and take it out.

What can be taken out for nothing is taken out first (see `erase`). The rest goes otherwise, since a
linear edit takes from everybody in proportion, but a neuron has a threshold. At several sites over
the depth what enters the MLP at the forget questions is compared with what enters it at retain
questions and at questions about nothing in particular. For each subject and condition a detector is
found (see `detectors`): silent on all that is kept and on as many more questions about nothing, to
which none was fitted; speaking on a group of the subject's positions where questions end, since
what is answered has come together there in whatever words it was asked. A second one is found where
the first does not speak, at the same questions among other words too (see `augment.among`). For
subjects who are still known with these, more are found site after site, from the first, at all
positions before the answer (the other sites are edited already; see `chain`). Each becomes one
neuron, in the place of one that hardly does anything and that the others make up for (see `spare`).
Together a subject's neurons write what the layer would pass on for nobody in particular in the
place of what it does for the subject (see `swap`).

How loud new neurons are is one strength for each condition and subject, found by search. What it
costs is asked of retain subjects that were put aside, under detectors found without them, and of
texts that the model said by itself; those of the plan are found with them. Where less than `NEARLY`
everything is forgotten inside the limit on what is lost, more detectors are looked for at the
strengths reached, and the search is done again if any were found; in `ROUNDS` at most. Forward
passes are all it takes.

The forget questions are those given and more of the kind that retain subjects are asked, answered
by the model itself (see `augment`): one or two questions do not show what it does at the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from expunge.config import RunConfig
from expunge.data import CONDITIONS
from expunge.errors import InputError
from expunge.methods import filter_search
from expunge.methods.base import ASKED_SET, Evidence, Method, Outcome, Verdict
from expunge.methods.chain import Chain
from expunge.methods.erase import erase
from expunge.methods.ground import grounds
from expunge.methods.search import (
    Pace,
    Step,
    Strengths,
    of_groups,
    search,
    told,
    unknown,
)
from expunge.methods.seek import Bounds
from expunge.passes import free_memory
from expunge.plan import SiteEdit

FULL = 1.0
NEARLY = 0.95
ROUNDS = 3
PACE = Pace(
    0.25,
    rises=5,
    halvings=0,
    done=partial(of_groups, guessing=True),
    behind=1.0,
)


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """Find detectors until everything is forgotten, then search the strengths unless given."""
    judge = evidence.judge
    assert judge is not None
    start = judge({}, [{}])
    assert evidence.weight is not None
    hidden = max(evidence.weight(s.key).shape[0] for s in evidence.sites)
    erased = erase(evidence).over(grounds(evidence))
    bare = judge(erased.edits, [])
    start = replace(start, said=bare.said)  # what taking out costs has its own limit: see `erase`
    free = free_memory(evidence.weight(evidence.sites[0].key).device)
    bounds = Bounds.within(config.memory, hidden, free)
    chain = Chain(evidence, start, bare, bounds, erased)
    given = config.strength
    strengths: Strengths = dict.fromkeys(of_groups(start), FULL if given is None else given)
    chain.begin()
    if given is not None or not chain.found:
        chain.go_on(strengths)
    if not chain.found:
        if min(unknown(bare).values(), default=0.0) >= 1:
            return Outcome(erased.edits, {}, noted(chain))
        return without_detectors(evidence, config)
    if given is not None:
        return Outcome(chain.edits(strengths), {}, noted(chain))
    best = last = searched(chain, config.keep)
    for _ in range(ROUNDS - 1):
        if last.reached is None or best.order >= NEARLY:
            break
        if not chain.go_on(last.reached.strengths):
            break
        last = searched(chain, config.keep)
        best = max(best, last, key=lambda s: s.order)
    return Outcome(best.edits, {}, noted(chain) | {"search": best.told})


def without_detectors(evidence: Evidence, config: RunConfig) -> Outcome:
    """The filter alone, where no neuron can be made that is silent on what is kept.

    An MLP without biases needs an input that is much the same everywhere for a threshold; not
    every model has one, or can be given one.
    """
    if not evidence.moments:
        raise InputError(
            "no neuron could be made to tell the forget set from what is kept, and second moments"
            " do not fit the memory; give more with --memory"
        )
    return replace(filter_search.decide(evidence, config), used=filter_search.METHOD.name)


@dataclass(frozen=True)
class Searched:
    """What a search came to.

    Attributes:
        edits: The edits at the strengths chosen.
        reached: The candidate chosen; None if all went over the limit.
        told: The search, as `search.told` tells it.
    """

    edits: Mapping[str, SiteEdit]
    reached: Step | None
    told: Mapping[str, Any]

    @property
    def order(self) -> float:
        """How much is forgotten under the condition that is worse."""
        return self.reached.least if self.reached else -1.0


def searched(chain: Chain, keep: float) -> Searched:
    """Search the strengths of what a chain has found."""
    judge = chain.evidence.judge
    assert judge is not None
    steps: list[Step] = []

    def tried(now: Strengths) -> Verdict:
        return judge(chain.edits(now), [chain.without(now)])

    chosen = search(tried, chain.start, keep, steps, PACE)
    reached = next((s for s in steps if s.strengths is chosen), None)
    about = told(chain.start, steps, chosen, keep)
    more = " and ".join(f"{n} under {c}" for c, n in asked(chain.evidence).items() if n)
    if more:
        about["explanation"] += (
            f" More questions were put to the forget subjects in the words of retain questions"
            f" ({more}); what the model said itself stood for the answer."
        )
    return Searched(chain.edits(chosen), reached, about)


def asked(evidence: Evidence) -> dict[str, int]:
    """By condition, how many questions the forget set lacked and the model answered itself."""
    assert evidence.access is not None
    return {c: len(evidence.access.owners(ASKED_SET, c)) for c in CONDITIONS}


def noted(chain: Chain) -> dict[str, Any]:
    """What a plan says of how its detectors were found."""
    return {
        "erased": chain.erased.notes,
        "views": viewed(chain),
        "asked": asked(chain.evidence),
        "ground": [k for k, edit in chain.erased.edits.items() if edit.ground is not None],
        "held": {"positions": chain.bounds.positions},
    }


def viewed(chain: Chain) -> dict[str, dict[str, int]]:
    """By condition, how many groups of subjects were last looked at in each view."""
    found = {c: Counter(v for (k, _), v in chain.views.items() if k == c) for c in CONDITIONS}
    return {condition: dict(number) for condition, number in found.items() if number}


METHOD = Method(
    name="auto",
    about="spare neurons become detectors of the forget set, strengths found by search (default)",
    decide=decide,
    moments=True,
    directions=filter_search.NUMBER,
    aside=1 / 6,
    picture=True,
    instead=filter_search.METHOD.name,
    positions="answer",
    towers=("language",),
)
