"""Towers: which modules are the encoders, the connector and the language model."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from expunge.errors import InputError
from expunge.sites.blocks import Block, features, inside

Roots = dict[str, tuple[str, ...]]

ENCODERS = {"vision": "image", "audio": "audio"}  # our name: transformers' name
# Modules inside an encoder whose job is to hand its output to the language model.
CONNECTORS = frozenset(
    {"merger", "merger_list", "deepstack_merger_list", "vision_adapter", "connector", "adapter"}
)
# Towers of the model types where transformers names none or the wrong one; paths with or without a
# leading "model.". Where a type is listed, it has no encoders but these.
TOWERS: dict[str, Roots] = {
    "deepseek_vl_hybrid": {"vision": ("vision_model", "high_res_vision_model")},
    "git": {"vision": ("git.image_encoder",)},
    "granite_speech": {"audio": ("encoder",)},
    "granite_speech_plus": {"audio": ("encoder",)},
    "phi4_multimodal": {
        "vision": ("embed_tokens_extend.image_embed.img_processor",),
        "audio": ("embed_tokens_extend.audio_embed.encoder",),
        "connector": ("embed_tokens_extend",),
    },
    "qwen2_5_omni": {
        "vision": ("thinker.model.visual",),
        "audio": ("thinker.model.audio_tower",),
        "language": ("thinker.model.language_model",),
    },
    "qwen3_omni_moe": {
        "vision": ("thinker.model.visual",),
        "audio": ("thinker.model.audio_tower",),
        "language": ("thinker.model.language_model",),
    },
    "t5gemma2": {"vision": ("encoder.vision_tower",)},
    "video_llava": {"vision": ("image_tower", "video_tower")},
    "vision-encoder-decoder": {"vision": ("encoder",)},
    "whisper": {"audio": ("encoder",)},
}


def towers(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders and the language model by tower name; several modules come as a `ModuleList`.

    A connector has an entry only where `TOWERS` lists it: as a rule it is whatever has neurons
    outside these modules, and the mergers inside an encoder.
    """
    found = {}
    for tower, paths in roots(model, {}).items():
        modules = [model.get_submodule(path) for path in paths]
        found[tower] = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
    return found


def roots(model: nn.Module, declared: Mapping[str, str]) -> Roots:
    """Paths of the modules of each tower, declared ones included (these replace what was found).

    Raises:
        InputError: A declared path is not a module of the model.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    known = TOWERS.get(getattr(getattr(model, "config", None), "model_type", ""), {})
    found: Roots = {}
    for tower, listed in known.items():
        both = [path for short in listed for path in (short, f"model.{short}")]
        found[tower] = tuple(path for path in both if path in paths.values())
    decoder = _asked(model, paths, "get_decoder") or ""
    for tower, modality in ENCODERS.items():
        encoder = _asked(model, paths, "get_encoder", modality=modality)
        if not known and encoder is not None and not inside(decoder, encoder):
            found[tower] = (encoder,)
    found = {tower: each for tower, each in found.items() if each}
    text = _asked(model, paths, "get_encoder")
    claimed = {path for group in found.values() for path in group}
    if "language" not in found:
        beside = text is not None and text not in claimed and not inside(decoder, text)
        found["language"] = (text, decoder) if beside and text is not None else (decoder,)
    for tower, path in declared.items():
        found[tower] = (_resolved(path, tower, paths.values()),)
    return found


def tower_of(block: Block, found: Roots) -> str | None:
    """The tower of the deepest root around a block; beside encoders, what is around none connects.

    Returns:
        None for a block outside the language model of a model without encoders.
    """
    encoders = [tower for tower in found if tower in ENCODERS]
    around = [
        (len(root), tower)
        for tower, paths in found.items()
        for root in paths
        if inside(block.group, root)
    ]
    if not around:
        return "connector" if encoders else None
    length, tower = max(around)
    below = block.group[length:].split(".")
    return "connector" if tower in encoders and CONNECTORS.intersection(below) else tower


def unknown_layout(model: nn.Module, tower: str, paths: tuple[str, ...]) -> InputError | None:
    """The error for a tower without MLPs; None for an encoder that has no linear layers at all."""
    seen = Counter(
        re.sub(r"\d+", "N", name or "itself")
        for path in paths
        for name, module in model.get_submodule(path).named_modules()
        if features(module) is not None
    )
    if not seen and tower != "language":
        return None
    shown = ", ".join(f"{name} x{count}" for name, count in seen.most_common(8)) or "none"
    where = " and ".join(path or "the model itself" for path in paths)
    return InputError(
        f"no MLP of a known layout in the {tower} tower ({where}). Linear layers there: {shown}. "
        "Declare the module that holds an MLP's linear layers in the order in which they run: "
        f"--tower {tower}=path.to.module"
    )


def _asked(model: nn.Module, paths: Mapping[int, str], method: str, **kwargs: str) -> str | None:
    """Path of what `get_encoder` or `get_decoder` returns, None where there is no such method."""
    ask = getattr(model, method, None)
    return paths.get(id(ask(**kwargs))) if ask is not None else None


def _resolved(path: str, tower: str, names: Collection[str]) -> str:
    for candidate in (path, f"model.{path}"):
        if candidate in names:
            return candidate
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.5)
    raise InputError(
        f"tower {tower!r}: the model has no module {path!r}. Nearest: {', '.join(near) or 'none'}; "
        "give a path that named_modules() lists."
    )
