"""Run forward passes and turn activations into statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Example
from expunge.encoding import Batch, input_device
from expunge.errors import InputError, unknown
from expunge.experts import Hear, listening
from expunge.models import Prompter
from expunge.positions import POSITIONS, UNITS, Positions, means, owned, sums
from expunge.prefix import Shared, lean, shared_batches
from expunge.sites import Site, down_module, find_sites
from expunge.sketch import empty
from expunge.stats import Moment, NeuronStats

Receiver = Callable[[Site, Tensor, Tensor | None], None]


@dataclass(frozen=True)
class Counting:
    """Which positions count and what a unit is.

    Attributes:
        positions: `all` that hold a token, `no_image` those that are no image placeholder,
            `image` the placeholders alone, `answer` those that predict a token of the answer; only
            for the language tower, and there not for the encoder of an encoder-decoder, which
            always counts all.
        unit: `token`, or `example` (mean over an example's counted positions; an example that has
            none is no unit).
        tau: |z| above which a neuron counts as active.
    """

    positions: str = "all"
    unit: str = "token"
    tau: float = 0.1

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise unknown("positions", self.positions, POSITIONS)
        if self.unit not in UNITS:
            raise unknown("unit", self.unit, UNITS)


@dataclass
class Statistics:
    """What was collected on one data set under one condition, by site key."""

    neurons: dict[str, NeuronStats] = field(default_factory=dict)
    moments: dict[str, Moment] = field(default_factory=dict)

    def all_reduce(self) -> None:
        """Add up over the processes of the default group, in place."""
        for each in (self.neurons, self.moments):
            for key in sorted(each):
                each[key].all_reduce()


@contextlib.contextmanager
def record(model: nn.Module, sites: Sequence[Site], receive: Receiver) -> Iterator[None]:
    """Within the block, `receive(site, z, tokens)` gets what enters each down projection.

    Args:
        model: The model; what it says stays the same (experts: to rounding).
        sites: Where to listen.
        receive: Called with the site, z [..., width] detached, and None; for an expert with z
            [n, width] of the tokens routed to it and their positions in the flattened batch,
            int64 [n].
    """
    mixtures: dict[str, dict[int, Site]] = {}
    with contextlib.ExitStack() as stack:
        for site in sites:
            if site.kind == "expert" and site.expert is not None:
                mixtures.setdefault(site.path, {})[site.expert] = site
                continue

            def hook(_: nn.Module, inputs: tuple[Any, ...], site: Site = site) -> None:
                receive(site, inputs[0].detach(), None)

            handle = down_module(model, site).register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        if mixtures:
            heard = {model.get_submodule(p): _hear(own, receive) for p, own in mixtures.items()}
            stack.enter_context(listening(heard))
        yield


def _hear(sites: Mapping[int, Site], receive: Receiver) -> Hear:
    def hear(expert: int, z: Tensor, tokens: Tensor) -> None:
        if expert in sites:
            receive(sites[expert], z.detach(), tokens)

    return hear


@dataclass
class _Collector:
    """Adds up what every site hears, a shared beginning with its weight.

    Counting per example, what the language model does at the beginning waits for the rest.
    """

    counting: Counting
    neurons: bool
    moments: bool
    sketch: int | None = None
    found: Statistics = field(default_factory=Statistics)
    waiting: dict[str, tuple[Site, Tensor, Tensor]] = field(default_factory=dict)
    now: tuple[Positions, int, int] | None = None

    def expect(self, positions: Positions, examples: int, times: int) -> None:
        """Say what runs next: where it counts, its rows, and how many examples each stands for."""
        self.now = positions, examples, times

    def receive(self, site: Site, z: Tensor, tokens: Tensor | None) -> None:
        """A `Receiver` for `record`; what runs unexpected, while batches are made, is no data."""
        if self.now is None:
            return
        positions, examples, times = self.now
        rows, owner, places = owned(site, z, tokens, positions, self.counting.unit, examples)
        if owner is None:
            self.add(site, rows, times, places)
            return
        total, count = sums(rows, owner, examples)
        if times > 1 and site.tower == "language":
            total, count = (t.repeat_interleave(times, 0) for t in (total, count))
            self.waiting[site.key] = site, total, count
            return
        if site.key in self.waiting:
            _, before, number = self.waiting.pop(site.key)
            total, count = total + before, count + number
        self.add(site, means(total, count), times)

    def finish(self) -> None:
        """No more of these examples will come."""
        for site, total, count in self.waiting.values():
            self.add(site, means(total, count))
        self.waiting.clear()
        self.now = None

    def add(self, site: Site, rows: Tensor, times: int = 1, places: Tensor | None = None) -> None:
        """Add units [units, width], or those at some places, each `times` times.

        None make an entry all the same.
        """
        key, width, device = site.key, site.width, rows.device
        if self.neurons and key not in self.found.neurons:
            self.found.neurons[key] = NeuronStats.zeros(width, self.counting.tau, device)
        if self.moments and key not in self.found.moments:
            self.found.moments[key] = empty(width, self.sketch, device)
        for kept in (self.found.neurons, self.found.moments):
            if len(rows) and key in kept:
                kept[key].update(rows, times=times, places=places)


@torch.inference_mode()
def collect_inputs(
    model: Any,
    feed: Iterable[Batch | Shared | Mapping[str, Tensor]],
    *,
    sites: Sequence[Site] | None = None,
    condition: str = "multi",
    neurons: bool = True,
    moments: bool = False,
    sketch: int | None = None,
    counting: Counting | None = None,
    tick: Callable[[int], None] | None = None,
) -> Statistics:
    """Run ready model inputs and sum statistics at every site.

    Sums run over counted units alone, so that they do not depend on batch size, padding or
    order beyond float64 rounding. What questions share counts once for each of them.

    Args:
        model: The model, unchanged afterwards.
        feed: Batches, or keyword arguments of `forward` as `Batch.of` takes them.
        sites: Where to listen; all of the model's by default; dead sites are skipped.
        condition: Under `text`, towers other than the language model need not run.
        neurons: Collect `NeuronStats`.
        moments: Collect `SecondMoment`.
        sketch: Instead, at sites of more than twice as many neurons, a `Sketch` of this size.
        counting: Which positions count, and the unit.
        tick: Called with the number of examples done after each batch.

    Returns:
        The sums, an entry for every live site; an expert that no token was routed to has count 0.

    Raises:
        InputError: An expected site never ran, or positions cannot be told apart.
    """
    counting = counting or Counting()
    live = [s for s in (find_sites(model) if sites is None else sites) if not s.dead]
    towers = {s.tower for s in live}
    collector = _Collector(counting, neurons, moments, sketch)

    def expect(batch: Batch, times: int = 1) -> None:
        positions = Positions.of(model, batch, counting.positions, towers)
        collector.expect(positions, len(batch.mask), times)

    brief = lean(model)
    done = 0
    with record(model, live, collector.receive):
        for each in feed:
            if isinstance(each, Shared):
                expect(each.head, each.times)
                batch = each.begin(model)
            else:
                batch = each if isinstance(each, Batch) else Batch.of(each, input_device(model))
            expect(batch)
            model(**batch.inputs, **brief)
            collector.finish()
            done += len(batch.mask)
            if tick:
                tick(done)
    if done and (neurons or moments):
        _check_fired(collector.found, live, condition)
    device = input_device(model)
    for site in live:
        collector.add(site, torch.zeros(0, site.width, device=device))
    return collector.found


def _check_fired(found: Statistics, sites: Sequence[Site], condition: str) -> None:
    """Raise for a site that never ran but must: under `text`, only a silent language model."""
    ran = found.neurons.keys() | found.moments.keys()
    expected = [s for s in sites if s.expert is None]
    if condition == "text":
        language = [s for s in expected if s.tower == "language"]
        # cross-attention layers sleep without an image
        expected = [] if any(s.key in ran for s in language) else language
    for site in expected:
        if site.key not in ran:
            raise InputError(
                f"site {site.key} ({site.path}) never ran under {condition}; if the model does not"
                " use it, leave its tower out with --towers"
            )


def collect_statistics(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    sites: Sequence[Site],
    neurons: bool = True,
    moments: bool = False,
    sketch: int | None = None,
    counting: Counting | None = None,
    batch_size: int = 32,
    share: tuple[int, int] = (0, 1),
    tick: Callable[[int], None] | None = None,
) -> Statistics:
    """Run `examples` under `condition` and sum statistics at every site.

    Rows without a form under `condition` are passed over. Counting per example, images run one by
    one, since a tower may pack those of several examples into one row. Questions about one picture
    run it once where that is exact (see `prefix`).

    Args:
        model: The model, unchanged afterwards.
        prompter: How conversations are rendered.
        examples: The data set.
        condition: `multi` or `text`.
        sites: Where to listen; dead sites are skipped.
        neurons: Collect `NeuronStats`.
        moments: Collect `SecondMoment`.
        sketch: See `collect_inputs`.
        counting: Which positions count, and the unit.
        batch_size: Examples per forward pass.
        share: (i, n): run the i-th of n shares of the batches and add the sums up over the n
            processes of the default group, which all have to call this.
        tick: Called with the number of examples done after each batch.

    Raises:
        InputError: See `collect_inputs`.
    """
    usable = [e for e in examples if e.has(condition)]
    apart = counting is not None and counting.unit == "example" and condition == "multi"
    apart = apart and any(s.tower != "language" for s in sites)
    found = collect_inputs(
        model,
        shared_batches(
            model, prompter, usable, condition, batch_size=batch_size, apart=apart, share=share
        ),
        sites=sites,
        condition=condition,
        neurons=neurons,
        moments=moments,
        sketch=sketch,
        counting=counting,
        tick=tick,
    )
    if share[1] > 1:
        found.all_reduce()
    return found


def collect(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    *,
    sites: Sequence[Site] | None = None,
    condition: str = "multi",
    positions: str = "all",
    unit: str = "token",
    tau: float = 0.1,
    batch_size: int = 32,
) -> dict[str, NeuronStats]:
    """Neuron statistics of `examples` under one condition, by site key.

    See `collect_statistics`; `sites` defaults to all of the model's.
    """
    return collect_statistics(
        model,
        Prompter(processor),
        examples,
        condition,
        sites=find_sites(model) if sites is None else sites,
        counting=Counting(positions, unit, tau),
        batch_size=batch_size,
    ).neurons
