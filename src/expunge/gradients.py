"""Streaming statistics of g = z * dL/dz, L the mean loss on an example's answer tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.collect import Counting
from expunge.data import Example
from expunge.encoding import Batch, batches
from expunge.evaluate import Answers
from expunge.measure import refuse_expert
from expunge.models import Prompter
from expunge.positions import Positions, rows_of
from expunge.sites import Site, down_module
from expunge.stats import NeuronStats


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no parameter requires a gradient."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextlib.contextmanager
def held(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, list[Tensor]]]:
    """Within the block, what enters each down projection is kept as part of the graph.

    The first activation that depends on nothing differentiable starts the graph; all later ones
    hang on it.
    """
    found: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as stack:
        for site in sites:

            def hook(_: nn.Module, inputs: tuple[Any, ...], site: Site = site) -> tuple[Any, ...]:
                z = inputs[0]
                z = z if z.requires_grad else z.detach().requires_grad_()
                found.setdefault(site.key, []).append(z)
                return (z, *inputs[1:])

            handle = down_module(model, site).register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield found


@torch.enable_grad()
def collect_attributions(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    sites: Sequence[Site],
    counting: Counting | None = None,
    batch_size: int = 32,
    tick: Callable[[int], None] | None = None,
) -> dict[str, NeuronStats]:
    """Sum g = z * dL/dz over the counted units of a data set; one backward pass per batch.

    L is each example's own mean answer loss, so that g does not depend on the batch.

    Args:
        model: The model, unchanged afterwards.
        prompter: How conversations are rendered.
        examples: The data set; rows without a form under `condition` are passed over.
        condition: `multi` or `text`.
        sites: Where to look.
        counting: Which positions count, and the unit.
        batch_size: Examples per pass.
        tick: Called with the number of examples done after each batch.

    Returns:
        Site key -> statistics of g; `total` is minus the first-order change of the summed losses
        if the neuron were ablated.
    """
    counting = counting or Counting()
    for site in sites:
        refuse_expert(site)
    usable = [e for e in examples if e.has(condition)]
    towers = {s.tower for s in sites}
    found: dict[str, NeuronStats] = {}
    done = 0
    with frozen(model):
        for batch in batches(model, prompter, usable, condition, batch_size=batch_size):
            positions = Positions.of(model, batch, counting.positions, towers)
            for site, g in _attributed(model, batch, sites):
                rows = rows_of(site, g, None, positions, counting.unit, len(batch.rows))
                if site.key not in found:
                    found[site.key] = NeuronStats.zeros(site.width, counting.tau, rows.device)
                found[site.key].update(rows)
            done += len(batch.rows)
            if tick:
                tick(done)
    return found


def _attributed(model: Any, batch: Batch, sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
    """Yield g of every site that ran, [..., width]."""
    with held(model, sites) as kept:
        loss = Answers.of(model, batch).losses().sum()
    pairs = [(site, z) for site in sites for z in kept.get(site.key, ())]
    grads = torch.autograd.grad(loss, [z for _, z in pairs], allow_unused=True)
    for (site, z), grad in zip(pairs, grads, strict=True):
        z = z.detach()
        yield site, torch.zeros_like(z) if grad is None else z * grad
