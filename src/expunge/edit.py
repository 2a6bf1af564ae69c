"""Carry a plan out on a model, undo it bit for bit, and save the edited checkpoint."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from expunge.errors import InputError
from expunge.offload import stored_parameters, whole_state
from expunge.plan import Plan, SiteEdit
from expunge.rewire import Rewire
from expunge.sites import (
    Site,
    down_module,
    down_weight,
    find_sites,
    grow_bias,
    grow_values,
    inner_bias,
    inner_of,
    inner_weight,
    takes_values,
    value_bias,
)

HASHING = 16
"""Weights that are hashed at the same time at most."""


def fingerprint(model: nn.Module) -> str:
    """Short hash of a model's weights: any change of any stored number changes it.

    Each tensor enters with its shape, dtype and all its bytes, at about 750 MB/s on each of up to
    `HASHING` cores; names do not, since they differ between library versions, and equal tensors
    count once, since tied ones come apart when they are offloaded. A quantised tensor counts as
    those it is made of.
    """
    parts = (part for each in stored_parameters(model) for part in _plain(each))
    digests: set[str] = set()
    with ThreadPoolExecutor(min(HASHING, os.cpu_count() or 1)) as pool:
        while some := list(itertools.islice(parts, HASHING)):  # so that few are read at a time
            digests.update(pool.map(hashed, some))
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:32]


def hashed(tensor: Tensor) -> str:
    """Hash of a tensor's shape, dtype and all its bytes, hexadecimal."""
    summary = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    stored = tensor.detach().flatten().cpu().contiguous()
    summary.update(stored.view(torch.uint8).numpy().data)
    return summary.hexdigest()


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))


def check_base(model: nn.Module, plan: Plan) -> None:
    """Raise `InputError` unless the plan was made for exactly these weights."""
    wanted = plan.provenance.get("base", {}).get("fingerprint")
    if wanted is None:
        return
    found = fingerprint(model)
    if found != wanted:
        raise InputError(
            f"this plan was made for other weights: it names fingerprint {wanted}, this model has"
            f" {found}. Apply it to the unedited base model it was made from, in the same dtype"
        )


def apply(model: nn.Module, plan: Plan, *, check: bool = True) -> Callable[[], None]:
    """Edit the model in place.

    Args:
        model: The model the plan was made for.
        plan: What to change.
        check: Refuse a model whose weights are not those the plan names.

    Returns:
        A function that restores the weights bit for bit and removes steering hooks. If the edit
        fails half-way, what was done is undone before the error is raised.
    """
    sites = _sites_of(model, plan)
    if check:
        check_base(model, plan)
    return _carry_out(model, sites, plan.edits)


def _carry_out(
    model: nn.Module, sites: Mapping[str, Site], edits: Mapping[str, SiteEdit]
) -> Callable[[], None]:
    undos: list[Callable[[], None]] = []

    def undo() -> None:
        while undos:
            undos.pop()()

    try:
        for key, edit in edits.items():
            _edit_site(model, sites[key], edit, undos)
    except BaseException:
        undo()
        raise
    return undo


@contextlib.contextmanager
def edited(
    model: nn.Module, sites: Mapping[str, Site], edits: Mapping[str, SiteEdit]
) -> Iterator[nn.Module]:
    """Within the block the model carries `edits` (site key -> edit), with no plan around them."""
    undo = _carry_out(model, sites, edits)
    try:
        yield model
    finally:
        undo()


@contextlib.contextmanager
def applied(model: nn.Module, plan: Plan, *, check: bool = True) -> Iterator[nn.Module]:
    """Within the block the model is edited; afterwards it is bit for bit what it was."""
    undo = apply(model, plan, check=check)
    try:
        yield model
    finally:
        undo()


def _sites_of(model: nn.Module, plan: Plan) -> dict[str, Site]:
    declared = plan.provenance.get("config", {}).get("towers_declared") or None
    known = {s.key: s for s in find_sites(model, attention=True, declared=declared)}
    for key in plan.edits:
        if key not in known:
            raise InputError(f"the plan edits site {key}, which this model does not have")
        width = plan.sites[key]["width"]
        if known[key].width != width:
            raise InputError(
                f"the plan expects {width} neurons at {key}, this model has {known[key].width}"
            )
        _check_fit(model, known[key], plan.edits[key])
    return known


def _check_fit(model: nn.Module, site: Site, edit: SiteEdit) -> None:
    touched = edit.neurons()
    if touched.numel() and not 0 <= int(touched[0]) <= int(touched[-1]) < site.width:
        raise InputError(
            f"the plan edits neurons {int(touched[0])} to {int(touched[-1])} of {site.key}, which"
            f" has neurons 0 to {site.width - 1}; the plan is damaged"
        )
    if edit.rewire is not None:
        _check_rewire(model, site, edit.rewire)
    if edit.ground is not None:
        number, able = len(edit.ground), takes_values(model, site)
        if number != able:
            raise InputError(
                f"the plan adds {number} numbers to the biases of the values of attention at"
                f" {site.key}, of which {able or 'there can be none'}; it was made for another"
                " model or is damaged"
            )
    if edit.steer is not None and site.kind == "expert":
        raise InputError(f"{site.key} is one expert of many: it can be pruned, but not steered")
    if edit.lowrank is not None:
        a, b = edit.lowrank
        wanted = tuple(down_weight(model, site).shape)
        if (a.shape[0], b.shape[1]) != wanted or a.shape[1] != b.shape[0]:
            raise InputError(
                f"the plan's low-rank factors at {site.key} are {tuple(a.shape)} and"
                f" {tuple(b.shape)}, which do not multiply to {wanted}; the plan is damaged"
            )


def _check_rewire(model: nn.Module, site: Site, new: Rewire) -> None:
    inner = inner_of(model, site)
    if inner is None:
        raise InputError(
            f"the plan replaces neurons of {site.key}, but how {site.path} gets its input is not"
            " known here; apply the plan to the model it was made for"
        )
    width = inner_weight(model, inner.gate[0], site).shape[1]
    number, out = len(new.index), down_weight(model, site).shape[0]
    shapes = [tuple(t.shape) for t in (new.gate, new.bias, new.factor, new.down, new.constant)]
    constant = (number if inner.up and len(new.constant) else 0,)
    wanted = [(number, width), (number,), (number if inner.up else 0,), (out, number), constant]
    if shapes != wanted:
        raise InputError(
            f"the plan's new neurons at {site.key} are {shapes}, expected {wanted}; it was made for"
            " another model or is damaged"
        )


def _edit_site(
    model: nn.Module, site: Site, edit: SiteEdit, undos: list[Callable[[], None]]
) -> None:
    """Edit one site; what undoes a change joins `undos` before the change is made."""
    if edit.lowrank is not None or edit.prune is not None or edit.scale is not None:
        undos.append(_keeper(model, site, edit))
        _edit_weight(down_weight(model, site), edit)
    if edit.rewire is not None:
        _rewire(model, site, edit.rewire, undos)
    if edit.ground is not None:
        if value_bias(model, site) is None:
            undos.append(grow_values(model, site))
        bias = value_bias(model, site)
        assert bias is not None
        _replace(bias, (slice(None),), bias + edit.ground.to(bias), undos)
    if edit.steer is not None:
        undos.append(_steer(down_module(model, site), edit.steer))


def _rewire(model: nn.Module, site: Site, new: Rewire, undos: list[Callable[[], None]]) -> None:
    """Put new neurons in the place of old ones."""
    inner = inner_of(model, site)
    assert inner is not None
    if new.biased and any(inner_bias(model, path) is None for path, _ in inner.parts):
        undos.append(grow_bias(model, inner))
    for (path, first), (rows, added) in zip(inner.parts, new.inner, strict=False):
        places = first + new.index
        _replace(inner_weight(model, path, site), (places,), rows, undos)
        bias = inner_bias(model, path)
        if bias is not None:
            _replace(bias, (places,), added, undos)
    _replace(down_weight(model, site), (slice(None), new.index), new.down, undos)


def _replace(
    weight: Tensor, where: tuple[Any, ...], values: Tensor, undos: list[Callable[[], None]]
) -> None:
    """Write values into a part of a weight; what puts the old ones back joins `undos` before."""
    where = tuple(w.to(weight.device) if isinstance(w, Tensor) else w for w in where)
    original = weight[where].clone()

    def undo() -> None:
        weight[where] = original

    undos.append(undo)
    weight[where] = values.to(weight)


def _keeper(model: nn.Module, site: Site, edit: SiteEdit) -> Callable[[], None]:
    """Keep the columns that `edit` changes; returns what puts them back, wherever they then are."""
    weight = down_weight(model, site)
    columns = edit.neurons() if edit.lowrank is None else torch.arange(site.width)
    original = weight[:, columns.to(weight.device)].clone()

    def undo() -> None:
        weight = down_weight(model, site)
        weight[:, columns.to(weight.device)] = original.to(weight)

    return undo


def _edit_weight(weight: Tensor, edit: SiteEdit) -> None:
    if edit.lowrank is not None:
        exact = torch.promote_types(weight.dtype, torch.float32)
        a, b = (f.to(weight.device, exact) for f in edit.lowrank)
        weight.copy_((weight.to(exact) + a @ b).to(weight.dtype))
    if edit.scale is not None:
        index, factors = (t.to(weight.device) for t in edit.scale)
        exact = torch.promote_types(weight.dtype, factors.dtype)
        weight[:, index] = (weight[:, index].to(exact) * factors).to(weight.dtype)
    if edit.prune is not None:
        weight[:, edit.prune.to(weight.device)] = 0


def _steer(module: nn.Module, steer: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    index, add, off = steer

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        z = inputs[0].clone()
        chosen = z[..., index.to(z.device)] + add.to(z)
        z[..., index.to(z.device)] = torch.where(off.to(z.device), chosen.clamp_max(0), chosen)
        return (z, *inputs[1:])

    return module.register_forward_pre_hook(hook).remove


def shard_size(model: Any) -> dict[str, int]:
    """`max_shard_size` in bytes for a model that was loaded from several files: its largest."""
    source = str(getattr(model.config, "_name_or_path", "") or "")
    try:
        found = (
            cached_file(source, SAFE_WEIGHTS_INDEX_NAME, local_files_only=True) if source else None
        )
    except OSError:  # one file, or a model that was never loaded
        found = None
    if found is None:
        return {}
    names = set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values())
    shards = [Path(found).with_name(name) for name in names]
    return {"max_shard_size": max(s.stat().st_size for s in shards if s.is_file())}


def save_checkpoint(model: Any, processor: Any, folder: str | Path) -> Path:
    """Write model and processor as an ordinary checkpoint; the folder appears when complete."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise InputError(
            "the model carries a PEFT adapter, which an ordinary checkpoint cannot hold; call"
            " merge_and_unload() on it first, or load it with merge_adapter (--merge-adapter)"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another")
    temporary = folder.with_name(folder.name + ".partial")
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        temporary.mkdir(parents=True)
        _write_weights(model, temporary)
        if processor is not None:
            processor.save_pretrained(temporary)
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"the checkpoint cannot be written to {folder}: {error}") from error
    return folder


def _write_weights(model: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder, **shard_size(model))
    except AttributeError:  # transformers 5.0 looks for offloaded weights under their names on disk
        if not any(p.device.type == "meta" for p in model.parameters()):
            raise
        model.save_pretrained(folder, state_dict=whole_state(model), **shard_size(model))


@torch.no_grad()
def restore(checkpoint: str | Path, base: str | Path, folder: str | Path, **options: Any) -> Path:
    """Write `base` again, after making sure that `checkpoint` is an edit of it.

    Args:
        checkpoint: The edited checkpoint.
        base: What it was made from.
        folder: Where to write.
        options: How `base` was loaded for the edit, see `models.load`.

    Raises:
        InputError: The two differ anywhere else, so `base` is not what was edited.
    """
    from expunge.models import load

    (edited, _), (original, processor) = load(checkpoint), load(base, **options)
    ours, theirs = dict(edited.named_parameters()), dict(original.named_parameters())
    editable = _editable(original)
    for name, weight in theirs.items():
        if name not in ours or ours[name].shape != weight.shape or ours[name].dtype != weight.dtype:
            raise InputError(f"{checkpoint} was not made from {base}: {name} does not fit")
        if weight.data_ptr() not in editable and not torch.equal(ours[name], weight):
            raise InputError(f"{checkpoint} was not made from {base}: {name} differs")
    return save_checkpoint(original, processor, folder)


def _editable(model: nn.Module) -> set[int]:
    """Addresses of the weights that a plan can change."""
    found = set()
    for site in find_sites(model, attention=True):
        found.add(down_weight(model, site).data_ptr())
        values = value_bias(model, site)
        found |= set() if values is None else {values.data_ptr()}
        inner = inner_of(model, site)
        for path, _ in inner.parts if inner else []:
            bias = inner_bias(model, path)
            found.add(inner_weight(model, path, site).data_ptr())
            found |= set() if bias is None else {bias.data_ptr()}
    return found
