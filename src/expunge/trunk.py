"""Run the same questions again under other edits, from the first layer on that they change.

Candidates that are judged one after the other mostly differ from some layer on. What the layer
before passes on is then the same, so it is kept, and in the next run it stands for all the layers
up to there. Nothing is approximated: a model that says something else that way is run whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from expunge.encoding import input_device
from expunge.passes import free_memory
from expunge.plan import SiteEdit
from expunge.prefix import Shared
from expunge.probe_set import Forcing, ProbeSet
from expunge.sites import Site, layer_of

HELD = 2
"""Places in the model at which what passes there is held, for each set of questions."""
SHARE = 8
"""What is held may take the inverse of this of the memory that is free."""
PIXELS = ("pixel_values",)

Edits = Mapping[str, SiteEdit]


@dataclass
class _Held:
    """What one layer passed on when a set of questions was run.

    Attributes:
        at: Place of the layer behind it, the first that need not be the same.
        before: Edits of the layers before that, by site key.
        room: Bytes that may still be held; once it is passed nothing is.
        out: What the layer put out, pass by pass.
        first: Keys and values that the first layer left in the cache, for each; None without one.
        size: Bytes held.
    """

    at: int
    before: Edits
    room: int
    out: list[Any] = field(default_factory=list)
    first: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)
    size: int = 0

    def hear(self, into: list[Any], value: Any) -> None:
        """Note what one pass gave."""
        parts = value if isinstance(value, tuple) else (value,)
        self.size += sum(t.nbytes for t in parts if isinstance(t, Tensor))
        if self.size <= self.room:
            into.append(value)
        else:
            self.out.clear()
            self.first.clear()


class Trunk:
    """Runs questions under edits, and as little of the model as these ask for.

    Args:
        model: The model; unchanged between calls.
        sites: Sites by key. What is edited at sites of other towers than `language` changes
            everything.
    """

    def __init__(self, model: Any, sites: Mapping[str, Site]) -> None:
        self.model = model
        found = {k: layer_of(s) for k, s in sites.items() if s.tower == "language"}
        paths = list(dict.fromkeys(path for path in found.values() if path is not None))
        self.layers: list[nn.Module] = [model.get_submodule(path) for path in paths]
        self.place = {k: paths.index(path) for k, path in found.items() if path is not None}
        self.free = free_memory(input_device(model)) // SHARE
        self.exact: dict[Any, bool] = {}
        if getattr(model, "hf_device_map", None):  # weights are moved about as the pass goes
            self.layers = []
        self.last: Edits = {}
        self.differ = 0
        self.held: WeakKeyDictionary[ProbeSet, list[_Held]] = WeakKeyDictionary()

    def run(self, probes: ProbeSet, edits: Edits) -> Forcing:
        """Score the questions under the model, which carries these edits already."""
        if len(self.layers) < 2:
            return probes.run(self.model)
        kind = (probes.condition, *sorted({type(each).__name__ for each in probes.batches}))
        held = self.held.get(probes, [])
        known = [h for h in held if same(h.before, self._before(edits, h.at))]
        best = max(
            (h for h in known if self.exact.get((*kind, h.at), True)),
            key=lambda h: h.at,
            default=None,
        )
        new = self._wanted(probes, edits, best)
        checked = best is not None and (*kind, best.at) in self.exact
        found = self._passed(probes, best if checked else None, new)
        if best is not None and not checked:
            self.exact[*kind, best.at] = self._agrees(probes, best, found)
        if new is not None and new.out:
            others = [h for h in held if h is not best and h.at != new.at]
            self.held[probes] = [new, *([best] if best else []), *others][:HELD]
        return found

    def _before(self, edits: Edits, at: int) -> Edits:
        """The edits that reach what is passed on to a layer."""
        return {k: e for k, e in edits.items() if self.place.get(k, -1) < at}

    def _wanted(self, probes: ProbeSet, edits: Edits, best: _Held | None) -> _Held | None:
        """Where to listen: before the first layer edited of those on that were changed last."""
        keys = {*edits, *self.last}
        changed = [k for k in keys if not alike(edits.get(k), self.last.get(k))]
        if changed:
            self.last, self.differ = edits, min(self.place.get(k, -1) for k in changed)
        edited = [p for k in edits if (p := self.place.get(k, -1)) >= self.differ]
        at = min(edited, default=self.differ)
        if at <= (best.at if best else 0):
            return None
        mine = self.held.get(probes, [])[: HELD - 1]
        beside = [h for of, each in self.held.items() if of is not probes for h in each]
        room = self.free - sum(h.size for h in (*mine, *beside))
        return _Held(at, self._before(edits, at), room)

    def _agrees(self, probes: ProbeSet, held: _Held, whole: Forcing) -> bool:
        """Whether the first and the last batch come to what they came to in a run of all."""
        passes = [2 if isinstance(each, Shared) else 1 for each in probes.batches]
        try:
            for place in {0, len(passes) - 1}:
                with self._resumed(held, sum(passes[:place])):
                    found = probes.run(self.model, [place])
                each = probes.batches[place]
                rows = (each.tail if isinstance(each, Shared) else each).rows
                if not torch.allclose(found.nll[rows], whole.nll[rows], rtol=1e-3, atol=1e-3):
                    return False
        except Exception:  # foreign code was run in a way that it may not be made for
            return False
        return True

    def _passed(self, probes: ProbeSet, held: _Held | None, new: _Held | None) -> Forcing:
        """Run from where something is held, and hear what is to be held next."""
        with contextlib.ExitStack() as stack:
            if held is not None:
                stack.enter_context(self._resumed(held))
            if new is not None:
                stack.enter_context(self._listening(new))
            return probes.run(self.model)

    @contextlib.contextmanager
    def _listening(self, new: _Held) -> Iterator[None]:
        """Within the block what passes one layer is noted."""

        def first(_: nn.Module, args: Any, given: Mapping[str, Any], out: Any) -> None:
            new.hear(new.first, left_in(cache_in(given.values())))

        def heard(_: nn.Module, args: Any, out: Any) -> None:
            new.hear(new.out, out)

        hooks = [
            self.layers[0].register_forward_hook(first, with_kwargs=True),
            self.layers[new.at - 1].register_forward_hook(heard),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def _resumed(self, held: _Held, turn: int = 0) -> Iterator[None]:
        """Within the block what is held stands for the layers before it, and for the pictures.

        The passes of the block are those from the given one on.
        """
        turn -= 1

        def begin(_: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            nonlocal turn
            turn += 1
            return args, {k: v for k, v in given.items() if k not in PIXELS}

        def first(*args: Any, **given: Any) -> Any:
            cache, left = cache_in(given.values()), held.first[turn]
            if left is not None and type(cache) is DynamicCache:
                cache.update(*left, 0)
            return held.out[turn]

        def other(*args: Any, **given: Any) -> Any:
            return held.out[turn]

        skipped = self.layers[: held.at]
        before = [layer.__dict__.get("forward") for layer in skipped]
        hook = self.model.register_forward_pre_hook(begin, with_kwargs=True)
        for place, layer in enumerate(skipped):
            layer.forward = other if place else first
        try:
            yield
        finally:
            hook.remove()
            for layer, own in zip(skipped, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own


def cache_in(given: Iterable[Any]) -> DynamicCache | None:
    """The cache among the arguments of a layer, if there is one."""
    return next((each for each in given if isinstance(each, DynamicCache)), None)


def left_in(cache: DynamicCache | None) -> tuple[Tensor, Tensor] | None:
    """Keys and values of the first layer, where the cache is one that grows."""
    if type(cache) is DynamicCache and cache.layers:
        own = cache.layers[0]
        if isinstance(own, DynamicLayer) and own.keys is not None and own.values is not None:
            return own.keys, own.values
    return None


def same(some: Edits, others: Edits) -> bool:
    """Whether two candidates change the same in the same way."""
    return some.keys() == others.keys() and all(alike(e, others[k]) for k, e in some.items())


def alike(one: SiteEdit | None, other: SiteEdit | None) -> bool:
    """Whether two edits of a site are the same."""
    if one is other:
        return True
    some, others = ({} if e is None else e.tensors() for e in (one, other))
    return some.keys() == others.keys() and all(torch.equal(t, others[n]) for n, t in some.items())
