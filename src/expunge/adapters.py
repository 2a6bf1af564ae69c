"""Write the edits of a plan as a LoRA adapter that peft loads."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.errors import InputError
from expunge.plan import Plan

PREFIX = "base_model.model"


def write_lora(plan: Plan, folder: str | Path, model: nn.Module | None = None) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`; the folder appears when done.

    `peft.PeftModel.from_pretrained(vanilla, folder)` then says what the edited model says, to
    rounding: the product is added to the output instead of to the weight.

    Args:
        plan: A plan of low-rank edits and rewired neurons alone.
        folder: Where to write; must not exist, or be empty.
        model: The vanilla model; needed for rewired neurons, since an adapter holds differences.

    Returns:
        The folder.

    Raises:
        InputError: The plan has no edits, edits of another kind or edits of experts, or the folder
            is taken.
    """
    from peft import LoraConfig

    folder = Path(folder)
    factors, biases = _factors(plan), {}
    if any(edit.rewire is not None for edit in plan.edits.values()):
        biases = _add_rewired(plan, model, factors)
    if not factors:
        raise InputError("the plan has no low-rank edit, so there is no LoRA adapter to write")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another")
    ranks = {path: int(b.shape[0]) for path, (_, b) in factors.items()}
    most = max(ranks.values())
    pattern = {re.escape(path): rank for path, rank in ranks.items()}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules=sorted(ranks),
        base_model_name_or_path=plan.provenance.get("base", {}).get("id") or None,
        inference_mode=True,
        lora_bias=bool(biases),
    )
    named = {}
    for path, (a, b) in factors.items():
        named[f"{PREFIX}.{path}.lora_A.weight"] = b.contiguous().clone()
        named[f"{PREFIX}.{path}.lora_B.weight"] = a.contiguous().clone()
        if biases:
            named[f"{PREFIX}.{path}.lora_B.bias"] = biases.get(path, torch.zeros(a.shape[0]))
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        config.save_pretrained(str(temporary))
        save_file(named, temporary / "adapter_model.safetensors", {"format": "pt"})
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"the adapter cannot be written to {folder}: {error}") from error
    return folder


def _factors(plan: Plan) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> (A [out, rank], B [rank, width])."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for key, edit in plan.edits.items():
        if edit.kind not in ("lowrank", "rewire", "lowrank+rewire"):
            raise InputError(
                f"the plan edits {key} by {edit.kind or 'nothing'}; only low-rank edits or rewired"
                " neurons can become a LoRA adapter: save the edited checkpoint instead"
            )
        if ".expert." in key or re.search(r"\.shared\.\d+$", key):
            raise InputError(
                f"the plan edits {key}, one expert of many, which a LoRA adapter of this kind"
                " cannot hold; save the edited checkpoint instead"
            )
        if edit.lowrank is not None and edit.lowrank[1].shape[0]:
            a, b = (f.float() for f in edit.lowrank)
            if edit.rewire is not None:  # whose columns are replaced whole
                b = b.index_fill(1, edit.rewire.index, 0.0)
            found[str(plan.sites[key]["path"])] = a, b
    return found


def _add_rewired(
    plan: Plan, model: nn.Module | None, factors: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Add the factors of rewired neurons: new rows and columns less the old ones.

    Returns:
        Module path -> bias to add, for the maps into the hidden units.
    """
    from expunge.sites import down_weight, find_sites, inner_bias, inner_of, inner_weight

    if model is None:
        raise InputError(
            "the plan replaces neurons, and an adapter holds differences to the old ones: give the"
            " vanilla model too, plan.to_peft(folder, model)"
        )
    sites = {s.key: s for s in find_sites(model)}
    biases: dict[str, Tensor] = {}
    for key, edit in plan.edits.items():
        new, inner = edit.rewire, inner_of(model, sites[key])
        if new is None or inner is None:
            continue
        for (path, first), (rows, added) in zip(inner.parts, new.inner, strict=False):
            weight, old = inner_weight(model, path, sites[key]), inner_bias(model, path)
            places = first + new.index
            one_hot = torch.zeros(weight.shape[0], len(places))
            one_hot[places, torch.arange(len(places))] = 1.0
            _stack(factors, path, one_hot, rows.float() - weight[places].float().cpu())
            bias = biases.setdefault(path, torch.zeros(weight.shape[0]))
            bias[places] = added.float() - (0 if old is None else old[places].float().cpu())
        weight = down_weight(model, sites[key])
        one_hot = torch.zeros(len(new.index), weight.shape[1])
        one_hot[torch.arange(len(new.index)), new.index] = 1.0
        change = new.down - weight[:, new.index].float().cpu()
        _stack(factors, sites[key].path, change, one_hot)
    return biases


def _stack(factors: dict[str, tuple[Tensor, Tensor]], path: str, a: Tensor, b: Tensor) -> None:
    """Add A B to what a module gets."""
    if path in factors:
        a, b = torch.cat([factors[path][0], a], 1), torch.cat([factors[path][1], b], 0)
    factors[path] = a, b
