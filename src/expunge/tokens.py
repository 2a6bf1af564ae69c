"""What enters an MLP and what its layer passes on, position by position: a bounded sample."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.data import Example
from expunge.encoding import Batch, batches, placeholder_mask, predicting
from expunge.errors import InputError
from expunge.methods.base import Tokens
from expunge.models import Prompter
from expunge.prefix import Shared, lean, shared_batches
from expunge.sites import Inner, Site, down_module, explains, layer_of


@dataclass
class _Sample:
    """At most `limit` positions, every one as likely to be among them."""

    limit: int | None
    generator: torch.Generator
    parts: list[dict[str, Tensor]]
    square: Tensor | None = None
    count: int = 0

    def add(self, part: dict[str, Tensor]) -> None:
        """Add positions; each name has a row for each."""
        number = len(part["x"])
        part["turn"] = torch.rand(number, generator=self.generator).to(part["x"].device)
        self.parts.append(part)
        held = sum(len(p["x"]) for p in self.parts)
        if self.limit is not None and held > 2 * self.limit:
            self.parts = [self.whole()]

    def whole(self) -> dict[str, Tensor]:
        """What is held, in the order it came."""
        joined = {name: torch.cat([p[name] for p in self.parts]) for name in self.parts[0]}
        if self.limit is None or len(joined["turn"]) <= self.limit:
            return joined
        chosen = joined["turn"].topk(self.limit).indices.sort().values
        return {name: each[chosen] for name, each in joined.items()}


@torch.inference_mode()
def collect_tokens(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    places: Sequence[tuple[Site, Inner]],
    *,
    apart: bool = False,
    ends: bool = False,
    streams: bool = False,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> dict[str, Tokens]:
    """Run examples and keep what enters the MLPs of some sites.

    Args:
        model: The model, unchanged afterwards.
        prompter: How conversations are rendered.
        examples: The data set; rows without a form under `condition` are passed over.
        condition: `multi` or `text`.
        places: Where to listen.
        apart: Tell the questions apart; else questions about one picture run it once, and it
            counts once.
        ends: Keep nothing but the last position before each answer; the questions are told apart.
        streams: Keep what the layers pass on.
        limit: Positions kept of each site at most, drawn evenly.
        batch_size: Examples per forward pass.
        seed: Of the draw.
        tick: Called with the number of examples done after each batch.

    Returns:
        Site key -> the positions.

    Raises:
        InputError: Positions cannot be told apart.
    """
    usable = [e for e in examples if e.has(condition)]
    feed: Iterable[Batch | Shared]
    if apart:
        feed = batches(model, prompter, usable, condition, batch_size=batch_size)
    else:
        feed = shared_batches(model, prompter, usable, condition, batch_size=batch_size)
    samples = {
        site.key: _Sample(limit, torch.Generator().manual_seed(seed), []) for site, _ in places
    }
    seen = _Seen()
    keep = partial(_keep, model, places, seen, samples, apart or ends, streams)
    brief = lean(model)
    done = 0
    with _heard(model, places, seen):
        for each in feed:
            batch = each
            if isinstance(each, Shared):
                batch = each.begin(model)
                if ends:
                    seen.last.clear()
                else:
                    keep(each.head, each.head.mask)
            assert isinstance(batch, Batch)
            with seen.briefly(model):
                model(**batch.inputs, **brief)
            keep(batch, last_asked(batch) if ends else batch.mask)
            done += len(batch.mask)
            if tick:
                tick(done)
    return {key: _tokens(sample) for key, sample in samples.items() if sample.parts}


@torch.inference_mode()
def explained(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    places: Sequence[tuple[Site, Inner]],
) -> dict[str, Inner]:
    """Of the places, by site key, those whose maps give the very neurons that are seen."""
    seen = _Seen()
    found = {}
    with _heard(model, places, seen):
        for batch in batches(model, prompter, examples, condition, batch_size=len(examples)):
            model(**batch.inputs, **lean(model))
            for site, inner in places:
                x, z = (seen.last.get(f"{site.key}/{name}") for name in ("x", "z"))
                if x is not None and z is not None:
                    x, z = x.flatten(0, -2), z.flatten(0, -2)
                    if explains(model, site, inner, x, z):
                        found[site.key] = inner
    return found


class _Enough(Exception):
    """Everything that is listened to was heard, so that the rest need not be run."""


@dataclass
class _Seen:
    """What was last heard.

    Attributes:
        last: `<site key>/<x, z, out or stream>` -> value.
        wanted: The names that a whole pass fills.
        brief: Whether a pass ends once all of them are there.
    """

    last: dict[str, Tensor] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    brief: bool = False

    def hear(self, name: str, value: Tensor) -> None:
        """Note a value; ends the pass where it was the last that is wanted."""
        self.last[name] = value.detach()
        if self.brief and self.wanted <= self.last.keys():
            raise _Enough

    @contextlib.contextmanager
    def briefly(self, model: Any) -> Iterator[None]:
        """Within the block a pass ends with what is heard last; the layers behind are not run.

        Weights that are moved about as the pass goes are left where they are meant to be, so that
        such a model is run to its end.
        """
        self.brief = not getattr(model, "hf_device_map", None)
        try:
            with contextlib.suppress(_Enough):
                yield
        finally:
            self.brief = False


@contextlib.contextmanager
def _heard(model: nn.Module, places: Sequence[tuple[Site, Inner]], seen: _Seen) -> Iterator[None]:
    """Within the block `seen` hears x, z, out and stream of every site.

    `stream` is what the site's layer passes on, or `out` where it is in no layer.
    """
    with contextlib.ExitStack() as stack:
        for site, inner in places:

            def enter(_: nn.Module, inputs: tuple[Any, ...], key: str = site.key) -> None:
                seen.hear(f"{key}/x", inputs[0])

            def leave(
                _: nn.Module, inputs: tuple[Any, ...], out: Tensor, key: str = site.key
            ) -> None:
                seen.hear(f"{key}/z", inputs[0])
                seen.hear(f"{key}/out", out)

            def passed(
                _: nn.Module, inputs: tuple[Any, ...], out: Any, key: str = site.key
            ) -> None:
                seen.hear(f"{key}/stream", out if isinstance(out, Tensor) else out[0])

            first, last = model.get_submodule(inner.gate[0]), down_module(model, site)
            layer = layer_of(site)
            names = ("x", "z", "out", "stream")[: 3 if layer is None else 4]
            seen.wanted |= {f"{site.key}/{name}" for name in names}
            if layer is not None:
                stack.callback(model.get_submodule(layer).register_forward_hook(passed).remove)
            stack.callback(first.register_forward_pre_hook(enter).remove)
            stack.callback(last.register_forward_hook(leave).remove)
        yield


def _keep(
    model: Any,
    places: Sequence[tuple[Site, Inner]],
    seen: _Seen,
    samples: dict[str, _Sample],
    apart: bool,
    streams: bool,
    batch: Batch,
    mask: Tensor,
) -> None:
    """Add the positions of a mask, of the batch that has just run."""
    held = placeholder_mask(model, batch, {s.tower for s, _ in places} | {"vision"})
    place = torch.nonzero(mask)
    rows = torch.tensor(batch.rows, device=mask.device)
    for site, _ in places:
        found = {name: seen.last.pop(f"{site.key}/{name}") for name in ("x", "z")}
        out = seen.last.pop(f"{site.key}/out")
        stream = seen.last.pop(f"{site.key}/stream", out)
        if streams:
            # some layers pass on more than one state a position
            alike = (stream.numel(), stream.shape[-1]) == (out.numel(), out.shape[-1])
            found["stream"] = stream if alike else out
        for name, value in found.items():
            if value.shape[:-1].numel() != mask.numel():
                raise InputError(
                    f"site {site.key} ({site.path}) gives {tuple(value.shape[:-1])} units for a"
                    f" text of {tuple(mask.shape)}, so its positions cannot be told apart; use"
                    " --method filter-search"
                )
            found[name] = value.reshape(*mask.shape, -1)[mask]
        sample = samples[site.key]
        square = found["z"].double().square().sum(0)
        sample.square = square if sample.square is None else sample.square + square
        sample.count += len(found["z"])
        part = {"x": found["x"].float(), "picture": held[mask]}
        if streams:
            part["stream"] = found["stream"].float()
        if apart:
            part["question"], part["answer"] = rows[place[:, 0]], batch.answer[mask]
        sample.add(part)


def last_asked(batch: Batch) -> Tensor:
    """The last position before each answer, bool like the mask."""
    behind = batch.answer.long().cumsum(1) > 0
    return predicting(behind) & ~behind & batch.mask


def _tokens(sample: _Sample) -> Tokens:
    whole = sample.whole()
    assert sample.square is not None
    return Tokens(
        whole["x"],
        whole["picture"],
        (sample.square / max(sample.count, 1)).sqrt().float(),
        whole.get("stream"),
        whole.get("question"),
        whole.get("answer"),
    )
