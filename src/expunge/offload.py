"""Weights that accelerate keeps on the CPU or on disk while the model does not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn


def kept_weight(module: nn.Module, name: str, *, write: bool = False) -> Tensor | None:
    """An offloaded weight of a module, in memory.

    Args:
        module: A module whose parameter is on the meta device.
        name: Name of the parameter.
        write: Whether the tensor will be written to. What is on disk then moves to memory, where
            the model finds it from now on; files stay as they are.

    Returns:
        The weight, or None where accelerate does not keep it.
    """
    for weights, key in _sources(module, name):
        value: Tensor = weights[key]
        if write and isinstance(weights, OffloadedWeightsLoader) and key not in weights.state_dict:
            value = value.clone()
            weights.state_dict[key] = value
        return value
    return None


def stored_parameters(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter once, offloaded ones as they are kept; those kept nowhere are left out."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            on_meta = parameter.device.type == "meta"
            value = kept_weight(module, name) if on_meta else parameter
            if value is not None:
                yield value


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with offloaded weights as they are kept, in memory."""
    state: dict[str, Tensor] = model.state_dict()
    for path, value in state.items():
        module, _, name = path.rpartition(".")
        kept = None
        if value.device.type == "meta":
            kept = kept_weight(model.get_submodule(module), name)
        state[path] = value if kept is None else kept
    return state


def _sources(module: nn.Module, name: str) -> Iterator[tuple[Mapping[str, Tensor], str]]:
    """Where accelerate's hooks keep a parameter, and under which key."""
    hook: Any = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights, key = getattr(each, "weights_map", None), name
        while isinstance(weights, PrefixedDataset):
            weights, key = weights.dataset, weights.prefix + key
        if weights is not None and key in set(weights):  # `in weights` would read the file
            yield weights, key
