"""The maps into the hidden units of an MLP, for edits that rewrite whole neurons."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.offload import kept_weight
from expunge.sites.blocks import MLPS, Site, matched
from expunge.sites.grow import MLP, flagged, grow, holders, in_memory, owner_of
from expunge.sites.kin import as_llama
from expunge.sites.weights import stored

ACTIVATIONS = ("act_fn", "activation_fn", "activation", "act")
GATED = (("gate_proj", "up_proj"), ("gate_up_proj",), ("w1", "w3"), ("wi_0", "wi_1"))
ATTENTION_OUT = ("o_proj",)
NORMS_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm")
LEAST_SHARE = 1e-2
CLOSE = 1e-2


@dataclass(frozen=True)
class Inner:
    """Where a neuron of a site reads its input x.

    A neuron is z = act(g x) or, gated, z = act(g x) (u x), each row with a bias where there is one.

    Attributes:
        gate: Module path of the map that holds the rows g, and the first of its rows.
        up: The same of the rows u, or None without a gate.
        act: The activation function.
    """

    gate: tuple[str, int]
    up: tuple[str, int] | None
    act: Callable[[Tensor], Tensor]

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Gate, and up if there is one."""
        return [self.gate, *([self.up] if self.up else [])]


def inner_of(model: nn.Module, site: Site) -> Inner | None:
    """How a site's neurons read their input, or None where the layout is not known to tell."""
    if site.kind != "mlp":
        return None
    for maps, down in MLPS:
        if not f".{site.path}".endswith(f".{down}"):
            continue
        path = site.path[: -len(down)].rstrip(".")
        block = model.get_submodule(path)
        found = matched(block, (maps, down))
        act = _activation(block)
        if found is None or act is None or any(hasattr(m, "base_layer") for m, _ in found):
            continue
        prefix = f"{path}." if path else ""
        fused = len(maps) == 1 and found[0][1][1] == 2 * site.width
        if fused:
            return Inner((prefix + maps[0], 0), (prefix + maps[0], site.width), act)
        if len(maps) == 1 or maps in GATED:
            up = (prefix + maps[1], 0) if len(maps) == 2 else None
            return Inner((prefix + maps[0], 0), up, act)
    return None


def layer_of(site: Site) -> str | None:
    """Module path of the layer a site belongs to (what ends in a number), None where none is."""
    found = re.match(r"(.*\.\d+)\.", site.path)
    return found[1] if found else None


def passed_on(model: nn.Module, site: Site) -> float | None:
    """The share of what an MLP says that its layer adds to the stream.

    1 in most models, a constant of the configuration (Granite) or of the layer (Llama 3.2's cross
    attention) in some; None where hardly anything is passed on, or where a norm comes between, so
    that what is added does not grow with what is said (Gemma 2 and 3, GLM-4V).
    """
    path = layer_of(site)
    if path is None:
        return 1.0
    layer = model.get_submodule(path)
    if any(hasattr(layer, name) for name in NORMS_BEHIND):
        return None
    share = float(getattr(layer, "residual_multiplier", 1.0))
    gate = getattr(layer, "cross_attn_mlp_gate", None)
    if gate is not None and gate.device.type != "meta":
        share *= math.tanh(float(gate))
    return share if abs(share) > LEAST_SHARE else None


def _activation(block: nn.Module) -> Callable[[Tensor], Tensor] | None:
    for name in ACTIVATIONS:
        found = getattr(block, name, None)
        if callable(found):
            act: Callable[[Tensor], Tensor] = found
            return act
    return None


def inner_weight(model: nn.Module, path: str, site: Site) -> Tensor:
    """The weight of a map into the hidden units as a view ``(out, in)``.

    Raises:
        InputError: It is quantised, not in memory or sharded.
    """
    module = model.get_submodule(path)
    view = stored(module, "weight", site)
    return view.T if hasattr(module, "nf") else view


def inner_bias(model: nn.Module, path: str) -> Tensor | None:
    """The bias of a map into the hidden units, None where it has none."""
    module = model.get_submodule(path)
    bias = getattr(module, "bias", None)
    if bias is not None and bias.device.type == "meta":
        bias = kept_weight(module, "bias", write=True)
    return None if bias is None else bias.detach()


def hidden(model: nn.Module, site: Site, inner: Inner, x: Tensor) -> Tensor:
    """What inputs x [n, in] make the neurons of a site say, [n, width]."""
    made = torch.ones((), dtype=x.dtype, device=x.device)
    for number, (path, first) in enumerate(inner.parts):
        weight = inner_weight(model, path, site)[first : first + site.width].to(x)
        bias = inner_bias(model, path)
        rows = x @ weight.T
        rows = rows if bias is None else rows + bias[first : first + site.width].to(x)
        made = made * (inner.act(rows) if number == 0 else rows)
    return made


def explains(model: nn.Module, site: Site, inner: Inner, x: Tensor, z: Tensor) -> bool:
    """Whether inputs x [n, in] really give the neurons z [n, width] that were seen."""
    made = hidden(model, site, inner, x)
    return float((made - z).norm()) <= CLOSE * float(z.norm()) + 1e-6


def takes_bias(model: nn.Module, inner: Inner) -> bool:
    """Whether the maps have a bias, or the model's configuration allows one."""
    if all(inner_bias(model, path) is not None for path, _ in inner.parts):
        return True
    path = inner.gate[0]
    return owner_of(model, path, MLP) is not None or _kin(model, path) is not None


def grow_bias(model: nn.Module, inner: Inner) -> Callable[[], None]:
    """Give every MLP of the tower a bias of zero, where the configuration knows of such a one.

    A language model that only a Llama's configuration could give one is a Llama from then on as
    far as the configuration says, so that it is saved as one; see `kin`.

    Returns:
        A function that takes them away again.

    Raises:
        InputError: The model has no such option.
    """
    path = inner.gate[0]
    owner = owner_of(model, path, MLP)
    if owner is not None:
        return grow(owner, MLP.maps, partial(flagged, model, owner, MLP))
    owner = _kin(model, path)
    llama = None if owner is None else as_llama(model, owner)
    if owner is None or llama is None:
        raise InputError(
            f"the plan needs a bias at {path}, which this model cannot have; apply it to the model"
            " it was made for"
        )
    maps = (*MLP.maps, *(ATTENTION_OUT if llama.attention_bias else ()))
    return grow(owner, maps, partial(_written_as, model, llama))


def _kin(model: nn.Module, path: str) -> nn.Module | None:
    """The language model around a map that a Llama can compute, None where there is none."""
    found = next((m for m in holders(model, path) if as_llama(model, m)), None)
    return found if found is not None and in_memory(found, MLP.maps) else None


def _written_as(model: Any, llama: Any) -> Callable[[], None]:
    """Have the language model written as a Llama with biases; returns what takes that back."""
    whole, before = model.config, model.config.text_config
    whole.text_config = copy.deepcopy(llama)
    setattr(whole.text_config, MLP.flag, True)

    def undo() -> None:
        whole.text_config = before

    return undo
