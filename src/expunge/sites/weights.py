"""The weight behind a site, as a view that can be written to."""

from __future__ import annotations

import torch
from torch import nn

from expunge.errors import InputError
from expunge.offload import kept_weight
from expunge.sites.blocks import Site, is_transposed

EDITABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def down_module(model: nn.Module, site: Site) -> nn.Module:
    """The down projection, whose input holds the neurons (for `expert`, the experts' module)."""
    return model.get_submodule(site.path)


def down_weight(model: nn.Module, site: Site) -> torch.Tensor:
    """The weight of the down projection as a view ``(out, width)``; writing to it edits the model.

    Raises:
        InputError: The weight is quantised, not in memory, sharded or wrapped by an adapter, or
            the site is not one of this model's.
    """
    module = down_module(model, site)
    if hasattr(module, "base_layer"):
        raise InputError(
            f"{site.key}: {site.path} carries a PEFT adapter, so an edit of its base weight would "
            "leave part of the neuron; call merge_and_unload() on the model first, or load it with"
            " merge_adapter (--merge-adapter)."
        )
    view = stored(module, "down_proj" if site.kind == "expert" else "weight", site)
    if site.kind == "expert":
        view = view[site.expert]
        view = view.T if is_transposed(module) else view
    elif hasattr(module, "nf"):  # GPT-2 keeps (inputs, outputs)
        view = view.T
    if view.ndim != 2 or view.shape[1] != site.width:
        raise InputError(
            f"{site.key}: the weight of {site.path} has shape {tuple(view.shape)}, expected "
            f"(out, {site.width}); list the sites of this model with find_sites."
        )
    return view


def stored(module: nn.Module, name: str, site: Site) -> torch.Tensor:
    """A weight of a site where it is kept, offloaded or not; raises as `require_editable` does."""
    weight = getattr(module, name)
    assert isinstance(weight, torch.Tensor)
    if weight.device.type == "meta":
        kept = kept_weight(module, name, write=True)
        weight = weight if kept is None else kept
    require_editable(weight, site)
    return weight.detach()


def require_editable(weight: torch.Tensor, site: Site) -> None:
    """Raise `InputError` unless the weight is a plain floating-point tensor in memory."""
    where = f"{site.key}: the weight of {site.path}"
    if weight.device.type == "meta":
        raise InputError(
            f"{where} is not in memory (it is on the meta device); load the model whole."
        )
    kind = type(weight.data)
    if kind is not torch.Tensor or weight.dtype not in EDITABLE:
        raise InputError(
            f"{where} is a {kind.__name__} of {weight.dtype}, expected a plain floating-point "
            "tensor; load the checkpoint unquantised and unsharded, edit it, then quantise again."
        )
