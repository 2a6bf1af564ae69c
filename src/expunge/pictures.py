"""What a model sees in pictures, worked out once while nothing but its language is edited.

Candidates are judged on the same questions again and again, and what the vision tower and the
projector make of their pictures is the same each time. The larger the tower beside the language
model, the more of a pass that is.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from expunge.edit import hashed
from expunge.encoding import input_device
from expunge.passes import free_memory

SHARE = 8
"""What is remembered may take the inverse of this of the memory that is free."""
NAME = "get_image_features"
UNREAD = ("hidden_states", "attentions")
"""What the tower's layers pass on by the way, which no model looks at behind the projector."""


@contextlib.contextmanager
def remembered(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within the block, a model on a CPU looks at the same pictures once; blocks may be nested.

    Neither its towers nor what stands between them and the language model may change in the block,
    nor may anybody listen there. With gradients it looks anew. It looks in all bits, whatever is
    multiplied in half of them (`precision`): some models cannot put the one into the other.

    Args:
        model: The model; as before after the block.
        wanted: Whether to do so at all.
    """
    looking = [m for m in model.modules() if hasattr(m, NAME)]
    already = any(NAME in m.__dict__ for m in looking)
    if not wanted or already or input_device(model).type != "cpu":
        yield
        return
    memory = _Memory(free_memory(input_device(model)) // SHARE)
    innermost = [
        m for m in looking if not any(hasattr(own, NAME) for own in m.modules() if own is not m)
    ]
    for place, module in enumerate(innermost):
        setattr(module, NAME, memory.of(getattr(module, NAME), place))
    try:
        yield
    finally:
        for module in innermost:
            delattr(module, NAME)


@dataclass
class _Memory:
    """What a model made of pictures; what was not asked for longest makes room.

    Attributes:
        room: Bytes at most.
        held: What was given -> what came of it, and its bytes.
        size: Bytes held.
    """

    room: int
    held: OrderedDict[bytes, tuple[Any, int]] = field(default_factory=OrderedDict)
    size: int = 0

    def of(self, look: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        """The same function, that remembers; others have other places."""

        @functools.wraps(look)  # generating asks for its signature
        def looked(*args: Any, **given: Any) -> Any:
            key = None if torch.is_grad_enabled() else told([place, args, given])
            if key is None:
                return look(*args, **given)
            if key in self.held:
                self.held.move_to_end(key)
            else:
                with torch.autocast("cpu", enabled=False):
                    self._hold(key, _kept(look(*args, **given)))
            return _anew(self.held[key][0])

        return looked

    def _hold(self, key: bytes, seen: Any) -> None:
        size = sum(t.nbytes for t in _tensors(seen))
        self.held[key] = seen, size
        self.size += size
        while self.size > self.room and len(self.held) > 1:
            self.size -= self.held.popitem(last=False)[1][1]


def told(given: Any) -> bytes | None:
    """What tells arguments apart: their values.

    None where something is among them that is neither numbers, words nor tensors on a CPU.
    """
    digest = hashlib.sha256()
    return digest.digest() if _add(digest, given) else None


def _add(digest: Any, value: Any) -> bool:
    """Put a value into a digest; whether that could be done."""
    if isinstance(value, Mapping):
        value = [each for pair in value.items() for each in pair]
    if isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        return all(_add(digest, each) for each in value)
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            return False
        digest.update(hashed(value).encode())
        return True
    digest.update(f"{value!r} ".encode())
    return value is None or isinstance(value, bool | int | float | str)


def _kept(seen: Any) -> Any:
    """What came of it without what nobody looks at."""
    if not isinstance(seen, ModelOutput):
        return seen
    return _made(seen, {k: v for k, v in vars(seen).items() if k not in UNREAD})


def _anew(seen: Any) -> Any:
    """The same, with containers of its own: a model may put something in the place of a part."""
    if isinstance(seen, ModelOutput):
        return _made(seen, {k: _anew(v) for k, v in vars(seen).items()})
    return copy.copy(seen) if isinstance(seen, list) else seen


def _made(seen: ModelOutput, parts: Mapping[str, Any]) -> ModelOutput:
    """One of the same class of other parts; a model may have set some that the class lacks."""
    known = {each.name for each in fields(cast(Any, seen))}
    new = type(seen)(**{k: v for k, v in parts.items() if k in known})
    for name, value in parts.items():
        if name not in known:
            setattr(new, name, value)
    return new


def _tensors(seen: Any) -> Iterator[Tensor]:
    """All tensors in it."""
    if isinstance(seen, Tensor):
        yield seen
    elif isinstance(seen, ModelOutput | list | tuple):
        for each in vars(seen).values() if isinstance(seen, ModelOutput) else seen:
            yield from _tensors(each)
