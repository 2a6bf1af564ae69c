"""Statistics of what z does not show: linear outputs, gates, signs and quantiles."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from expunge.collect import Counting
from expunge.encoding import Batch
from expunge.errors import InputError
from expunge.positions import Positions, rows_of
from expunge.prefix import lean
from expunge.sites import Site, down_module
from expunge.sites.blocks import MLPS, features
from expunge.stats import NeuronStats


@dataclass(frozen=True)
class Tap:
    """One place to listen at.

    Attributes:
        site: The site, with the key and the width that what is heard has.
        module: A linear map of it.
        output: Listen to what leaves the map instead of what enters it.
        positive: Hear max(value, 0).
    """

    site: Site
    module: nn.Module
    output: bool = False
    positive: bool = False

    def heard(self, value: Tensor) -> Tensor:
        """The part of an activation that counts, [..., width]."""
        part = value.detach()[..., : self.site.width]
        return part.clamp_min(0) if self.positive else part


def maps_into(model: nn.Module, site: Site) -> dict[str, nn.Module]:
    """The linear maps into a site's hidden units by name, the gate's first; {} if unknown."""
    for names, down in MLPS:
        if site.kind == "mlp" and f".{site.path}".endswith(f".{down}"):
            block = site.path[: -len(down)].rstrip(".")
            paths = {name: f"{block}.{name}".lstrip(".") for name in names}
            known = dict(model.named_modules())
            if all(path in known for path in paths.values()):
                return {name: known[path] for name, path in paths.items()}
    return {}


def taps_of(model: nn.Module, sites: Sequence[Site], what: str) -> list[Tap]:
    """Where to listen for `positive`, `gates` or `linears` (see `methods.base.Access`).

    Raises:
        InputError: A site is one of many experts, whose linear maps cannot be listened to.
    """
    taps: list[Tap] = []
    for site in sites:
        refuse_expert(site)
        down = down_module(model, site)
        maps = maps_into(model, site) if what != "positive" else {}
        if what == "linears":
            parts = {**maps, site.path.rpartition(".")[2]: down} if maps else {}
            for name, module in parts.items():
                width = (features(module) or (0, 0))[1]
                own = replace(site, key=f"{site.key}/{name}", width=width)
                taps.append(Tap(own, module, output=True))
        elif maps and (
            len(maps) > 1 or (features(next(iter(maps.values()))) or (0, 0))[1] > site.width
        ):
            taps.append(Tap(site, next(iter(maps.values())), output=True, positive=True))
        else:
            taps.append(Tap(site, down, positive=True))
    return taps


def refuse_expert(site: Site) -> None:
    """Raise `InputError` if a site is one expert of many."""
    if site.kind == "expert":
        raise InputError(
            f"{site.key} is one expert of many, which this method cannot look into; leave the"
            f" {site.tower} tower out with --towers, or choose another method"
        )


@torch.inference_mode()
def listen(
    model: Any,
    feed: Iterable[Batch],
    taps: Sequence[Tap],
    counting: Counting,
    receive: Callable[[Tap, Tensor], None],
) -> None:
    """Run batches; `receive(tap, rows)` gets the counted units of every tap, [units, width]."""
    towers = {tap.site.tower for tap in taps}
    now: dict[str, Any] = {}
    brief = lean(model)
    with contextlib.ExitStack() as stack:
        for tap in taps:

            def hook(_: nn.Module, inputs: Any, output: Any = None, tap: Tap = tap) -> None:
                value = tap.heard(output if tap.output else inputs[0])
                at = now["positions"], counting.unit, now["examples"]
                receive(tap, rows_of(tap.site, value, None, *at))

            listener = (
                tap.module.register_forward_hook(hook)
                if tap.output
                else tap.module.register_forward_pre_hook(hook)
            )
            stack.callback(listener.remove)
        for batch in feed:
            now["positions"] = Positions.of(model, batch, counting.positions, towers)
            now["examples"] = len(batch.mask)
            model(**batch.inputs, **brief)


def collect_taps(
    model: Any, feed: Iterable[Batch], taps: Sequence[Tap], counting: Counting
) -> dict[str, NeuronStats]:
    """Statistics of what the taps hear, by the key of their site; tau = 0 for positive parts."""
    found: dict[str, NeuronStats] = {}

    def receive(tap: Tap, rows: Tensor) -> None:
        if tap.site.key not in found:
            tau = 0.0 if tap.positive else counting.tau
            found[tap.site.key] = NeuronStats.zeros(tap.site.width, tau, rows.device)
        found[tap.site.key].update(rows)

    listen(model, feed, taps, counting, receive)
    return found


def collect_quantile(
    model: Any,
    feed: Callable[[], Iterable[Batch]],
    sites: Sequence[Site],
    chosen: Mapping[str, Tensor],
    level: float,
    counting: Counting,
) -> dict[str, Tensor]:
    """Exact quantiles of z, by linear interpolation between order statistics.

    Only the values above the quantile are kept; a first pass counts the units.

    Args:
        model: The model, unchanged afterwards.
        feed: Gives the batches, twice.
        sites: Sites that `chosen` names.
        chosen: Site key -> indices of neurons, int64 [n].
        level: Between 0 and 1.
        counting: Which positions count, and the unit.

    Returns:
        Site key -> quantile of each chosen neuron, float64 [n].
    """
    taps = [Tap(s, down_module(model, s)) for s in sites if s.key in chosen]
    counts: dict[str, int] = dict.fromkeys(chosen, 0)
    tops: dict[str, Tensor] = {}

    def count(tap: Tap, rows: Tensor) -> None:
        counts[tap.site.key] += len(rows)

    def keep(tap: Tap, rows: Tensor) -> None:
        key = tap.site.key
        mine = rows[:, chosen[key].to(rows.device)].double()
        pool = torch.cat([tops[key], mine]) if key in tops else mine
        number = counts[key] - math.floor(level * (counts[key] - 1))
        tops[key] = pool.topk(min(number, len(pool)), dim=0).values

    listen(model, feed(), taps, counting, count)
    listen(model, feed(), taps, counting, keep)
    found = {}
    for key, top in tops.items():
        place = level * (counts[key] - 1)
        below, share = top[-1], place - math.floor(place)
        found[key] = below if len(top) == 1 else below + share * (top[-2] - below)
    return found
