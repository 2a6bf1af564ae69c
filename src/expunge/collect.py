"""Run forward passes and turn activations into statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Example
from expunge.errors import InputError, unknown
from expunge.models import Batch, Prompter, accepts, batches, placeholder_mask
from expunge.sites import Site, down_module, find_sites
from expunge.stats import NeuronStats, SecondMoment

POSITIONS = ("all", "no_image", "answer")
UNITS = ("token", "example")
Receiver = Callable[[Site, Tensor], None]


@dataclass(frozen=True)
class Counting:
    """Which positions count and what a unit is.

    Attributes:
        positions: `all` that hold a token, `no_image` those that are no image placeholder,
            `answer` those that predict a token of the answer; only for the language tower.
        unit: `token`, or `example` (mean over an example's counted positions).
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
    moments: dict[str, SecondMoment] = field(default_factory=dict)


@contextlib.contextmanager
def record(model: nn.Module, sites: Sequence[Site], receive: Receiver) -> Iterator[None]:
    """Within the block, `receive(site, z)` gets what enters each down projection.

    Args:
        model: The model; it is not changed.
        sites: Where to listen.
        receive: Called with the site and z, [..., width], detached.
    """
    handles = []
    try:
        for site in sites:

            def hook(_: nn.Module, inputs: tuple[Any, ...], site: Site = site) -> None:
                receive(site, inputs[0].detach())

            handles.append(down_module(model, site).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def position_mask(model: Any, batch: Batch, positions: str) -> Tensor:
    """Which token positions count, bool [batch, length]."""
    if positions == "no_image":
        return batch.mask & ~placeholder_mask(model, batch.inputs["input_ids"])
    if positions == "answer":
        predicts = torch.zeros_like(batch.answer)
        predicts[:, :-1] = batch.answer[:, 1:]
        return predicts
    return batch.mask


def pooled(z: Tensor, mask: Tensor | None, unit: str) -> Tensor:
    """The counted units of z [batch, length, width] as rows, [units, width]."""
    if mask is None and unit == "token":
        return z.reshape(-1, z.shape[-1])
    if unit == "token":
        return z if mask is None else z[mask] if not bool(mask.all()) else z.flatten(0, -2)
    weights = torch.ones(z.shape[:-1], device=z.device) if mask is None else mask
    weights = weights.to(z.dtype if z.dtype == torch.float64 else torch.float32)
    total = torch.einsum("bt,btw->bw", weights, z.to(weights.dtype))
    return total / weights.sum(1, keepdim=True).clamp_min(1)


@torch.inference_mode()
def collect_statistics(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    sites: Sequence[Site],
    neurons: bool = True,
    moments: bool = False,
    counting: Counting | None = None,
    batch_size: int = 32,
    tick: Callable[[int], None] | None = None,
) -> Statistics:
    """Run `examples` under `condition` and sum statistics at every site.

    Sums run over counted units alone, so that they do not depend on batch size, padding or
    order beyond float64 rounding. Rows without a form under `condition` are passed over.

    Args:
        model: The model, unchanged afterwards.
        prompter: How conversations are rendered.
        examples: The data set.
        condition: `multi` or `text`.
        sites: Where to listen; dead sites are skipped.
        neurons: Collect `NeuronStats`.
        moments: Collect `SecondMoment`.
        counting: Which positions count, and the unit.
        batch_size: Examples per forward pass.
        tick: Called with the number of examples done after each batch.

    Raises:
        InputError: An expected site never ran.
    """
    counting = counting or Counting()
    usable = [e for e in examples if e.has(condition)]
    live = [s for s in sites if not s.dead]
    device = next(model.parameters()).device
    found = Statistics()
    masks: dict[str, Tensor] = {}
    for site in live:
        if neurons:
            found.neurons[site.key] = NeuronStats.zeros(site.width, counting.tau, device)
        if moments:
            found.moments[site.key] = SecondMoment.zeros(site.width, device)

    def receive(site: Site, z: Tensor) -> None:
        language = site.tower == "language" and z.shape[:-1] == masks["language"].shape
        if z.ndim == 2:
            z = z[None]
        rows = pooled(z, masks["language"] if language else None, counting.unit)
        if neurons:
            found.neurons[site.key].update(rows)
        if moments:
            found.moments[site.key].update(rows)

    lean = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}
    done = 0
    with record(model, live, receive):
        for batch in batches(model, prompter, usable, condition, batch_size=batch_size):
            masks["language"] = position_mask(model, batch, counting.positions)
            model(**batch.inputs, **lean, use_cache=False)
            done += len(batch.rows)
            if tick:
                tick(done)
    if usable:
        _check_fired(found, live, condition)
    return found


def _check_fired(found: Statistics, sites: Sequence[Site], condition: str) -> None:
    sums: dict[str, Any] = {**found.moments, **found.neurons}
    for site in sites:
        silent = sums and sums[site.key].count == 0
        if silent and (site.tower == "language" or condition == "multi") and site.kind != "expert":
            raise InputError(
                f"site {site.key} ({site.path}) never ran under {condition}; if the model does not"
                " use it, leave its tower out with --towers"
            )


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
