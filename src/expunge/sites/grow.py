"""Biases that a model has not, but that its configuration could give it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


@dataclass(frozen=True)
class Option:
    """A switch of a configuration that gives linear maps a bias.

    Attributes:
        flag: Its name.
        maps: The last names of the maps it is about.
    """

    flag: str
    maps: tuple[str, ...]

    def off(self, config: Any) -> bool:
        """Whether a configuration has the switch, and off."""
        return getattr(config, self.flag, None) is False


MLP = Option("mlp_bias", ("gate_proj", "up_proj", "down_proj"))
ATTENTION = Option("attention_bias", ("q_proj", "k_proj", "v_proj", "o_proj"))

_known: WeakKeyDictionary[nn.Module, dict[Option, bool]] = WeakKeyDictionary()


def owner_of(model: nn.Module, path: str, option: Option) -> nn.Module | None:
    """The part of a model that could have the biases, None where there is no such.

    It has the switch off, and its model, made with the switch on, has those biases and is the same
    otherwise.

    Args:
        model: The model.
        path: Module path of one of the maps.
        option: The switch.
    """
    for module in holders(model, path):
        if not option.off(getattr(module, "config", None)):
            continue
        known = _known.setdefault(module, {})
        if option not in known:
            known[option] = _gives(model, module, option)
        return module if known[option] and in_memory(module, option.maps) else None
    return None


def holders(model: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules with layers around a module, from the innermost."""
    names = path.split(".")
    for number in range(len(names), -1, -1):
        module = model.get_submodule(".".join(names[:number]))
        if hasattr(module, "layers"):
            yield module


def in_memory(module: nn.Module, maps: Sequence[str]) -> bool:
    """Whether the weights of all linear maps of these names are held."""
    return all(m.weight.device.type != "meta" for _, m in linears(module, maps))


def linears(owner: nn.Module, maps: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """All linear maps of these last names, each with its path."""
    for path, module in owner.named_modules():
        if type(module) is nn.Linear and path.rpartition(".")[2] in maps:
            yield path, module


def grow(
    owner: nn.Module, maps: Sequence[str], written: Callable[[], Callable[[], None]]
) -> Callable[[], None]:
    """Give all linear maps of these names that have none a bias of zero.

    Args:
        owner: Where the maps are.
        maps: Their last names.
        written: Has the configuration say so, and returns what takes that back.

    Returns:
        A function that takes the biases away again.
    """
    grown = [m for _, m in linears(owner, maps) if m.bias is None]
    for linear in grown:
        zero = torch.zeros(linear.out_features, dtype=linear.weight.dtype)
        linear.bias = nn.Parameter(zero.to(linear.weight.device), requires_grad=False)
    forget = written()

    def undo() -> None:
        for linear in grown:
            linear.register_parameter("bias", None)
        forget()

    return undo


def flagged(model: Any, owner: Any, option: Option) -> Callable[[], None]:
    """Turn the switch on wherever a configuration speaks for `owner`; returns what undoes it."""
    configs = [owner.config, *_speaking(model.config, option)]  # of which two may be the same
    for config in configs:
        setattr(config, option.flag, True)

    def undo() -> None:
        for config in configs:
            setattr(config, option.flag, False)

    return undo


def made_of(model: Any, config: Any) -> nn.Module | None:
    """A model of the same class without weights, None where it cannot be made of this."""
    try:
        with torch.device("meta"):
            made: nn.Module = type(model)._from_config(config)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return made


def added(model: nn.Module, other: nn.Module | None) -> set[str] | None:
    """Names of the weights that a model like this has more, None if it is not like this."""
    if other is None:
        return None
    ours, theirs = (
        {name: value.shape for name, value in m.state_dict().items()} for m in (model, other)
    )
    alike = all(theirs.get(name) == shape for name, shape in ours.items())
    return theirs.keys() - ours.keys() if alike else None


def _gives(model: Any, owner: nn.Module, option: Option) -> bool:
    """Whether a switch would give the owner's maps their biases, and change nothing else."""
    if not hasattr(model, "config"):
        return False
    path = next((name for name, module in model.named_modules() if module is owner), None)
    config = copy.deepcopy(model.config)
    for each in _speaking(config, option):
        setattr(each, option.flag, True)
    prefix = f"{path}." if path else ""
    lacking = {f"{prefix}{name}.bias" for name, m in linears(owner, option.maps) if m.bias is None}
    return path is not None and bool(lacking) and added(model, made_of(model, config)) == lacking


def _speaking(whole: Any, option: Option) -> list[Any]:
    """The configuration of a whole model and of its language model, where the switch is off."""
    parts = (whole, *(getattr(whole, name, None) for name in ("text_config", "llm_config")))
    return [each for each in parts if option.off(each)]
