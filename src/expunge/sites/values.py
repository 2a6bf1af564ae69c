"""The biases of the values of attention, which add the same at every position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from expunge.sites.blocks import Site
from expunge.sites.grow import ATTENTION, flagged, grow, owner_of
from expunge.sites.inner import layer_of


@dataclass(frozen=True)
class Values:
    """What the biases of values in a site's layer can add to the stream that its MLP reads.

    The weights of attention sum to 1, so that of biases b all that is attended to has the same
    part, and W b comes out at every position (W the map out, summed over the heads that share
    values).

    Attributes:
        write: W, float32 [out, n].
        size: Root mean square length of what the map of values makes of inputs of mean square 1.
    """

    write: Tensor
    size: float


def value_bias(model: nn.Module, site: Site) -> Tensor | None:
    """The biases themselves, [n]; None where there are none, or the layout is not known."""
    maps = _maps(model, site)
    return None if maps is None or maps[0].bias is None else maps[0].bias.detach()


def takes_values(model: nn.Module, site: Site) -> int | None:
    """How many there are, or could be by the model's configuration; None where none can be."""
    maps = _able(model, site)
    return None if maps is None else maps[0].out_features


def grow_values(model: nn.Module, site: Site) -> Callable[[], None]:
    """Give all attention of the tower biases of zero; returns what takes them away again.

    Args:
        model: The model.
        site: A site that has none, but for which `takes_values` tells a number.
    """
    owner = _owner(model, site)
    assert owner is not None
    return grow(owner, ATTENTION.maps, partial(flagged, model, owner, ATTENTION))


def _owner(model: nn.Module, site: Site) -> nn.Module | None:
    return owner_of(model, site.path, ATTENTION)


def values_of(model: nn.Module, site: Site) -> Values | None:
    """What they can do, None where there are none that do anything, nor can be."""
    maps = _able(model, site)
    if maps is None:
        return None
    value, out, head = maps
    weight = out.weight.detach().float()
    shared = weight.reshape(len(weight), value.out_features // head, -1, head).sum(2)
    size = float(value.weight.detach().float().norm())
    return Values(shared.flatten(1), size) if size else None


def _able(model: nn.Module, site: Site) -> tuple[nn.Linear, nn.Linear, int] | None:
    """The maps, where those to the values have biases or can be given some."""
    maps = _maps(model, site)
    if maps is not None and maps[0].bias is None and _owner(model, site) is None:
        return None
    return maps


def _maps(model: nn.Module, site: Site) -> tuple[nn.Linear, nn.Linear, int] | None:
    """The maps to the values and out of the heads in a site's layer, and the size of a head."""
    path = layer_of(site)
    if path is None or site.kind != "mlp":
        return None
    for block in model.get_submodule(path).children():
        value, out = getattr(block, "v_proj", None), getattr(block, "o_proj", None)
        head = getattr(block, "head_dim", None)
        if type(value) is not nn.Linear or type(out) is not nn.Linear or not isinstance(head, int):
            continue
        if "meta" in (value.weight.device.type, out.weight.device.type):
            continue
        heads, shared = out.in_features // head, value.out_features // head
        if (heads * head, shared * head) == (out.in_features, value.out_features):
            if shared and heads % shared == 0:
                return value, out, head
    return None
