"""What a method may ask of the model: measure again under edits, train, name the subjects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from torch import Tensor

from expunge.collect import Counting, collect_statistics
from expunge.config import RunConfig
from expunge.data import CONDITIONS, Example
from expunge.edit import applied
from expunge.encoding import Batch, batches
from expunge.ends import end_directions
from expunge.errors import unknown
from expunge.gradients import collect_attributions
from expunge.measure import collect_quantile, collect_taps, taps_of
from expunge.methods.base import PLAIN_SET, Fit, Grid, Tokens, Tuned
from expunge.models import Prompter
from expunge.plan import Plan, SiteEdit
from expunge.precision import half_products
from expunge.progress import Progress
from expunge.sites import (
    Inner,
    Site,
    Values,
    hidden,
    inner_of,
    passed_on,
    takes_bias,
    values_of,
)
from expunge.stats import NeuronStats
from expunge.tokens import collect_tokens, explained
from expunge.tune import Search

MEASURES = ("neurons", "positive", "gates", "linears", "attributions")


@dataclass(frozen=True)
class Bench:
    """The model with the sets, for methods that run it themselves (`methods.base.Access`).

    Attributes:
        model: The vanilla model; as before after every call.
        prompter: How conversations are rendered.
        sets: `forget` and `retain`.
        sites: The live sites of the chosen towers.
        config: Counting, batch size, `keep` and seed.
        progress: Where to show progress.
    """

    model: Any
    prompter: Prompter
    sets: Mapping[str, Sequence[Example]]
    sites: Sequence[Site]
    config: RunConfig
    progress: Progress = field(default_factory=Progress)

    @property
    def counting(self) -> Counting:
        """Which positions count, and the unit."""
        return Counting(self.config.positions or "all", self.config.unit, self.config.tau)

    def measure(
        self, what: str, edits: Mapping[str, SiteEdit] | None = None
    ) -> dict[tuple[str, str], dict[str, NeuronStats]]:
        """See `methods.base.Access.measure`."""
        if what not in MEASURES:
            raise unknown("measure", what, MEASURES)
        found = {}
        with self._edited(edits or {}):
            for name, rows in self.sets.items():
                for condition in CONDITIONS:
                    usable = [e for e in rows if e.has(condition)]
                    if usable:
                        found[name, condition] = self._measured(what, usable, condition)
        return found

    def quantile(self, data: str, level: float, chosen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `methods.base.Access.quantile`."""

        def feed() -> Iterator[Batch]:
            return chain.from_iterable(
                self._batches([e for e in self.sets[data] if e.has(c)], c) for c in CONDITIONS
            )

        return collect_quantile(self.model, feed, self.sites, chosen, level, self.counting)

    def tune(self, objective: str, grid: Grid) -> Tuned:
        """See `methods.base.Access.tune`."""
        steps = len(grid.rates) * max(grid.steps)
        with self.progress.task(f"train {objective}", steps, adds=True) as tick:
            search = Search(
                self.model,
                self.prompter,
                self.sets["forget"],
                self.sets["retain"],
                self.sites,
                objective,
                grid,
                keep=self.config.keep,
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                tick=tick,
            )
            return search.run()

    def subjects(self, data: str) -> list[str]:
        """See `methods.base.Access.subjects`."""
        return sorted({e.subject for e in self.sets[data]})

    def owners(self, data: str, condition: str) -> list[str]:
        """See `methods.base.Access.owners`."""
        return [e.subject for e in self.sets[data] if e.has(condition)]

    def fit(self, key: str) -> Fit | None:
        """See `methods.base.Access.fit`."""
        inner = self._inner.get(key)
        passed = passed_on(self.model, self._site(key))
        if inner is None or passed is None:
            return None
        return Fit(inner.up is not None, takes_bias(self.model, inner), passed)

    def values(self, key: str) -> Values | None:
        """See `methods.base.Access.values`."""
        return values_of(self.model, self._site(key))

    def said(self, key: str, x: Tensor) -> Tensor:
        """See `methods.base.Access.said`."""
        return hidden(self.model, self._site(key), self._inner[key], x)

    def _site(self, key: str) -> Site:
        return next(s for s in self.sites if s.key == key)

    @cached_property
    def ends(self) -> Tensor | None:
        """See `methods.base.Access.ends`."""
        return end_directions(self.model)

    def tokens(
        self,
        data: str,
        condition: str,
        keys: Sequence[str],
        edits: Mapping[str, SiteEdit] | None = None,
        *,
        apart: bool = False,
        ends: bool = False,
        streams: bool = False,
        limit: int | None = None,
    ) -> dict[str, Tokens]:
        """See `methods.base.Access.tokens`; of a large model, in half the bits where it pays."""
        places = [(s, self._inner[s.key]) for s in self.sites if s.key in keys]
        rows = self.sets.get(data, [])
        total = sum(e.has(condition) for e in rows)
        if not (total and places):
            return {}
        with (
            self._edited(edits or {}),
            half_products(self.model),
            self.progress.task(f"read {data} {condition}", total) as tick,
        ):
            return collect_tokens(
                self.model,
                self.prompter.plain if data == PLAIN_SET else self.prompter,
                rows,
                condition,
                places,
                apart=apart,
                ends=ends,
                streams=streams,
                limit=limit,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                tick=tick,
            )

    @cached_property
    def _inner(self) -> dict[str, Inner]:
        """Sites whose neurons are what their maps say they are, seen on one example."""
        known = [(s, i) for s in self.sites if (i := inner_of(self.model, s)) is not None]
        for condition in CONDITIONS:
            rows = [e for e in self.sets["forget"] if e.has(condition)][:1]
            if rows:
                return explained(self.model, self.prompter, rows, condition, known)
        return {}

    def _measured(
        self, what: str, rows: Sequence[Example], condition: str
    ) -> dict[str, NeuronStats]:
        reached = [s for s in self.sites if condition == "multi" or s.tower == "language"]
        size = self._size(condition)
        if what in ("neurons", "attributions"):
            collect = collect_attributions if what == "attributions" else _neurons
            return collect(
                self.model,
                self.prompter,
                rows,
                condition,
                sites=reached,
                counting=self.counting,
                batch_size=size,
            )
        taps = taps_of(self.model, reached, what)
        return collect_taps(self.model, self._batches(rows, condition), taps, self.counting)

    def _batches(self, rows: Sequence[Example], condition: str) -> Iterator[Batch]:
        size = self._size(condition)
        return batches(self.model, self.prompter, rows, condition, batch_size=size)

    def _size(self, condition: str) -> int:
        """Images run one by one when counting per example, as in `collect_statistics`."""
        apart = condition == "multi" and any(s.tower != "language" for s in self.sites)
        return 1 if apart and self.config.unit == "example" else self.config.batch_size

    @contextlib.contextmanager
    def _edited(self, edits: Mapping[str, SiteEdit]) -> Iterator[None]:
        about = {s.key: {"tower": s.tower, "path": s.path, "width": s.width} for s in self.sites}
        declared = {"config": {"towers_declared": dict(self.config.towers_declared)}}
        plan = Plan(edits, {key: about[key] for key in edits}, declared)
        with applied(self.model, plan, check=False) if edits else contextlib.nullcontext():
            yield


def _neurons(*given: Any, **options: Any) -> dict[str, NeuronStats]:
    return collect_statistics(*given, **options).neurons
