"""From question sets to the evidence that a method decides on: forward passes and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from expunge import methods
from expunge.augment import among, asked_like, self_answered
from expunge.bench import Bench
from expunge.collect import Counting, Statistics, collect_statistics
from expunge.config import RunConfig, bytes_of
from expunge.data import CONDITIONS, Example
from expunge.encoding import input_device, picture_key
from expunge.errors import InputError
from expunge.evaluate import answer_length
from expunge.judge import Judge
from expunge.methods import Evidence, Method
from expunge.methods.base import (
    ASIDE,
    ASKED_SET,
    BESIDE,
    ENDS_SET,
    NOISE_SET,
    OWN_SET,
    PICTURE,
    PLAIN_SET,
    SAID_SET,
    UNSEEN_SET,
    spread_over,
)
from expunge.models import Prompter, generates
from expunge.noise import altered_like, halved, noise_like, plain_of, related_like, told_by
from expunge.parallel import least, part
from expunge.passes import Name, Passes, free_memory, groups_within
from expunge.precision import half_products
from expunge.progress import Progress
from expunge.sites import Site, down_weight, inner_of, passed_on
from expunge.stats import Moment, NeuronStats
from expunge.subspace import workspace

SAID = 32
"""Of the texts that the model says itself, how many are put aside to judge by."""
OWN = 64
"""Questions of each kind about almost nothing whose answers are to stay."""


def gather(
    model: Any,
    prompter: Prompter,
    sets: Mapping[str, Sequence[Example]],
    sites: Sequence[Site],
    config: RunConfig,
    method: Method,
    progress: Progress | None = None,
) -> Evidence:
    """Collect what a method needs on forget and retain under both conditions.

    Where torchrun started several processes, all have to call this; they share the batches.

    Second moments are collected in as many passes as the limit on memory asks for; all but the
    first run while the method reads them.
    """
    shown = progress or Progress()
    if method.instead and not takes_neurons(model, sites):
        method = methods.get(method.instead)
    bench = Bench(model, prompter, sets, sites, config, shown)
    if method.aside:
        sets = _parted(bench, method)
    elif method.folds:
        parts = folded(sets["retain"], method.folds, config.seed)
        sets = {"forget": sets["forget"], **{n: rows for n, rows in parts.items() if rows}}
    unasked = (ASKED_SET, ENDS_SET, UNSEEN_SET, SAID_SET, OWN_SET)
    asked = {name: rows for name, rows in sets.items() if name not in unasked}
    if method.noise:
        kept = [e for name, rows in sets.items() if name != "forget" for e in rows]
        asked[NOISE_SET] = noise_like(prompter, kept, config.seed)
    reach = reach_of(asked, sites, method)
    collector = _Collector(model, prompter, asked, config, shown, half=bool(method.aside))
    neurons: dict[Name, Any] = {}
    second: Mapping[Name, Any] = {}
    if method.neurons:
        neurons = {of: collector.neurons(of, own) for of, own in reach.items()}
    if method.moments:
        first = spread_over(bench, sites) if method.aside else [s.key for s in sites]
        second = _moments(collector, reach, sites, first, method)
    found = evidence_of(replace(bench, sets=sets), neurons, second)
    return replace(found, method=method.name)


def _moments(
    collector: _Collector,
    reach: Mapping[Name, list[Site]],
    sites: Sequence[Site],
    first: Sequence[str],
    method: Method,
) -> Mapping[Name, Any]:
    """Second moments; none where they do not fit and the method can do without.

    Those of the sites with the keys `first` come first: others are not run unless asked for.

    Without a stated limit, half of what is free is theirs, and three quarters where nothing but
    forward passes goes on beside them.
    """
    memory = collector.config.memory
    free = free_memory(input_device(collector.model))
    share = free // 2 if method.aside else 3 * free // 4
    limit = least(share) if memory is None else bytes_of(memory)
    try:
        sketch = collector.config.sketch
        beside = held_beside(sites, method)
        ordered = [[s for s in sites if (s.key in first) == now] for now in (True, False)]
        parts = [groups_within(limit, some, reach, beside, sketch) for some in ordered if some]
        groups = [group for part in parts for group in part]
    except InputError:
        if method.aside:
            return {}
        raise
    return Passes(reach, groups, collector.moments)


def _parted(bench: Bench, method: Method) -> dict[str, Sequence[Example]]:
    """Part the retain subjects, and add questions about nothing and texts the model says."""
    parts = folded(bench.sets["retain"], round(1 / method.aside), bench.config.seed)
    aside, *rest = parts.values()
    kept = [e for rows in rest for e in rows] or aside
    seed, prompter = bench.config.seed, bench.prompter
    noise = _almost_nothing(bench, kept, seed)
    with bench.progress.task("sample text", 1):
        told = told_by(bench.model, prompter, kept, seed)
    noise += told[SAID:]
    forget, retain = bench.sets["forget"], bench.sets["retain"]
    with bench.progress.task("ask about almost nothing", 1):
        own = _own(bench, kept)
    with bench.progress.task("ask more about the forget subjects", 1):
        asked = asked_like(bench.model, prompter, forget, retain, seed, bench.config.batch_size)
    whole = [*forget, *asked]
    return {
        "forget": whole,
        ASKED_SET: asked,
        ENDS_SET: [*whole, *among(prompter, whole, told[SAID:], seed)],
        "retain": kept,
        ASIDE: aside,
        NOISE_SET: noise,
        UNSEEN_SET: _almost_nothing(bench, kept, seed + 2),
        PLAIN_SET: plain_of(told[SAID:]),
        SAID_SET: halved(prompter, told[:SAID]),
        OWN_SET: own,
    }


def _own(bench: Bench, kept: Sequence[Example]) -> list[Example]:
    """Questions about almost nothing other than those among the noise, and the model's answers."""
    if not generates(bench.model):
        return []
    rows = _almost_nothing(bench, kept, bench.config.seed + 1, number=OWN)
    length = answer_length(bench.prompter, kept)
    return self_answered(bench.model, bench.prompter, rows, length, bench.config.batch_size)


def _almost_nothing(
    bench: Bench, kept: Sequence[Example], seed: int, **number: int
) -> list[Example]:
    """Questions about nothing and about almost nothing; `number` of each kind, if given."""
    prompter, embeddings = bench.prompter, bench.model.get_input_embeddings().weight
    rows = noise_like(prompter, kept, seed, **number) + altered_like(prompter, kept, seed, **number)
    return rows + related_like(prompter, embeddings, kept, seed, **number)


def takes_neurons(model: Any, sites: Sequence[Site]) -> bool:
    """Whether new neurons can be put into some MLP of the chosen sites."""
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    return any(inner_of(model, s) is not None and passed_on(model, s) is not None for s in sites)


def reach_of(
    asked: Mapping[str, Sequence[Example]], sites: Sequence[Site], method: Method
) -> dict[Name, list[Site]]:
    """(set, condition) -> the sites it reaches, for what a method needs of the sets asked."""
    language = [s for s in sites if s.tower == "language"]
    reach = {
        (name, condition): list(sites) if condition == "multi" else language
        for name, examples in asked.items()
        for condition in CONDITIONS
        if any(e.has(condition) for e in examples)
    }
    if method.picture:
        pictured = [name for name, condition in reach if condition == "multi"]
        reach |= {(name, PICTURE): language for name in pictured if name != NOISE_SET}
    return reach


@dataclass(frozen=True)
class _Collector:
    """Runs a set under a condition and sums what its activations are at some sites.

    Attributes:
        half: Whether a large model may multiply in half the bits where that pays: for a method
            whose every candidate is asked on the model, and none that others have defined.
    """

    model: Any
    prompter: Prompter
    asked: Mapping[str, Sequence[Example]]
    config: RunConfig
    shown: Progress
    half: bool = False

    def neurons(self, of: Name, sites: Sequence[Site]) -> dict[str, NeuronStats]:
        """Neuron statistics by site key."""
        return self._run(of, sites, neurons=True).neurons

    def moments(self, of: Name, sites: Sequence[Site]) -> dict[str, Moment]:
        """Second moments by site key."""
        return self._run(of, sites, moments=True).moments

    def _run(self, of: Name, sites: Sequence[Site], **what: bool) -> Statistics:
        name, condition = of
        rows = self.asked[name]
        positions = "all" if name in BESIDE else str(self.config.positions)
        if condition == PICTURE:
            condition, positions, rows = "multi", "image", each_picture(rows)
        total = -(-sum(e.has(condition) for e in rows) // part()[1])
        with (
            half_products(self.model, self.half),
            self.shown.task(f"collect {name} {condition}", total) as tick,
        ):
            return collect_statistics(
                self.model,
                self.prompter.plain if name == PLAIN_SET else self.prompter,
                rows,
                condition,
                sites=sites,
                counting=Counting(positions, self.config.unit, self.config.tau),
                batch_size=self.config.batch_size,
                share=part(),
                sketch=self.config.sketch,
                tick=tick,
                **{"neurons": False, **what},
            )


def each_picture(rows: Sequence[Example]) -> list[Example]:
    """One row for every picture: what its own positions hold no later question changes."""
    found: dict[Any, Example] = {}
    for row in rows:
        if row.has("multi"):
            found.setdefault(picture_key(row.image), row)
    return list(found.values())


def held_beside(sites: Sequence[Site], method: Method) -> int:
    """Bytes that a method holds beside second moments: its solver's, its directions and edits."""
    apart = 3 if method.picture else 0  # forget moments that are looked at one by one
    solver = max(workspace(s.width) + apart * 8 * s.width**2 for s in sites)
    each = sum(3 * 8 * s.width * min(method.directions, s.width) for s in sites)
    return solver + (method.folds + bool(method.aside) + 1) * each


def fold_names(number: int) -> list[str]:
    """Names of the folds of the retain set."""
    return [f"retain {i}" for i in range(number)]


def folded(retain: Sequence[Example], number: int, seed: int) -> dict[str, list[Example]]:
    """Divide the retain set into folds that share no subject, fewer where subjects are few."""
    subjects = sorted({e.subject for e in retain})
    order = np.random.default_rng([seed, 3]).permutation(len(subjects))
    fold = {subjects[i]: place % number for place, i in enumerate(order)}
    parts: list[list[Example]] = [[] for _ in range(number)]
    for example in retain:
        parts[fold[example.subject]].append(example)
    return dict(zip(fold_names(number), parts, strict=True))


def evidence_of(bench: Bench, neurons: Mapping[Any, Any], moments: Mapping[Any, Any]) -> Evidence:
    """Bundle statistics with access to the model and its down projections."""
    by_key = {s.key: s for s in bench.sites}

    def weight(key: str) -> Any:
        return down_weight(bench.model, by_key[key]).detach()

    folds = [
        rows
        for name, rows in bench.sets.items()
        if (name == ASIDE or name.startswith("retain ")) and rows
    ]
    judge = None
    if folds:
        judge = Judge(
            bench.model,
            bench.prompter,
            by_key,
            bench.sets["forget"],
            folds,
            bench.sets.get(SAID_SET, ()),
            bench.sets.get(OWN_SET, ()),
            len(bench.sets.get(ASKED_SET, ())),
            seed=bench.config.seed,
            batch_size=2 * bench.config.batch_size,
        )
    return Evidence(bench.sites, neurons, moments, weight, bench, judge)
