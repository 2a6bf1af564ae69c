"""Write the low-rank edits of a plan as a LoRA adapter that peft loads."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import InputError
from expunge.plan import Plan

PREFIX = "base_model.model"


def write_lora(plan: Plan, folder: str | Path) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`; the folder appears when done.

    `peft.PeftModel.from_pretrained(vanilla, folder)` then says what the edited model says, to
    rounding: the product is added to the output instead of to the weight.

    Args:
        plan: A plan of low-rank edits alone.
        folder: Where to write; must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        InputError: The plan has no edits, edits of another kind or edits of experts, or the folder
            is taken.
    """
    from peft import LoraConfig

    folder = Path(folder)
    factors = _factors(plan)
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
    )
    named = {}
    for path, (a, b) in factors.items():
        named[f"{PREFIX}.{path}.lora_A.weight"] = b.contiguous().clone()
        named[f"{PREFIX}.{path}.lora_B.weight"] = a.contiguous().clone()
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
        if edit.kind != "lowrank" or edit.lowrank is None:
            raise InputError(
                f"the plan edits {key} by {edit.kind or 'nothing'}; only low-rank edits can become"
                " a LoRA adapter: save the edited checkpoint instead"
            )
        if ".expert." in key or re.search(r"\.shared\.\d+$", key):
            raise InputError(
                f"the plan edits {key}, one expert of many, which a LoRA adapter of this kind"
                " cannot hold; save the edited checkpoint instead"
            )
        if edit.lowrank[1].shape[0]:
            found[str(plan.sites[key]["path"])] = edit.lowrank
    if not found:
        raise InputError("the plan has no low-rank edit, so there is no LoRA adapter to write")
    return found
