"""All sites of a model, each with a key that stays the same between versions of transformers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from expunge.errors import InputError
from expunge.sites.blocks import Block, Site, blocks, in_order
from expunge.sites.towers import roots, tower_of, unknown_layout

ORDER = ("vision", "audio", "connector", "language")
AUTO = ("ImageTextToText", "MultimodalLM", "Seq2SeqLM", "SpeechSeq2Seq", "CausalLM")


def find_sites(
    model: nn.Module, *, attention: bool = False, declared: Mapping[str, str] | None = None
) -> list[Site]:
    """List the sites of a model, by tower (vision, audio, connector, language, declared) and layer.

    Args:
        model: A transformers model, on any device, meta included.
        attention: Whether to list attention blocks too (neurons are then the features that enter
            the output projection).
        declared: Further towers, ``{"eeg": "path.to.module"}``: every MLP inside the module, or the
            module itself where it holds linear layers in the order in which they run. The name of a
            known tower replaces what was found for it.

    Raises:
        InputError: A tower has linear layers but no MLP of a known layout, or a path is wrong.
    """
    declared = declared or {}
    found = roots(model, declared)
    members: dict[str, list[Block]] = {tower: [] for tower in (*ORDER, *found)}
    for block in blocks(model, attention):
        tower = tower_of(block, found)
        if tower is not None:
            members[tower].append(block)
    for tower, paths in found.items():
        if tower in declared and not _has_mlp(members[tower]):
            members[tower] += in_order(model.get_submodule(paths[0]), paths[0])
        if not _has_mlp(members[tower]) and (error := unknown_layout(model, tower, paths)):
            raise error
    sites = [site for tower, each in members.items() for site in _numbered(tower, each)]
    if attention and not any(site.kind == "attention" for site in sites):
        raise InputError(
            f"no attention block of a known layout in {type(model).__name__}; "
            "leave attention sites out."
        )
    return _mark_dead(sites, getattr(model, "config", None))


def describe(sites: Iterable[Site]) -> list[dict[str, Any]]:
    """The site table as plain dictionaries (the `sites` of ``expunge inspect --json``)."""
    names = ("key", "tower", "kind", "path", "width", "parameters", "dead")
    return [{name: getattr(site, name) for name in names} for site in sites]


def inspect_config(path_or_id: str, *, trust_remote_code: bool = False) -> tuple[str, list[Site]]:
    """List the sites of a checkpoint from its configuration alone, without reading weights.

    Args:
        path_or_id: A folder with a ``config.json`` or a hub id.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The model type and its sites.

    Raises:
        InputError: There is no such configuration, or no generative model class for it.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            path_or_id, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot read a model configuration from {path_or_id!r} ({reason}); expected a folder "
            "with config.json or the id of a model on the hub."
        ) from error
    for name in AUTO:
        auto = getattr(transformers, f"AutoModelFor{name}", None)
        if auto is None:
            continue
        remote = trust_remote_code and auto.__name__ in getattr(config, "auto_map", {})
        if remote or type(config) in auto._model_mapping:
            with torch.device("meta"):
                model = auto.from_config(config, trust_remote_code=trust_remote_code)
            return config.model_type, find_sites(model)
    raise InputError(
        f"{path_or_id!r} has model type {config.model_type!r}, for which transformers "
        f"{transformers.__version__} has no model that writes text; expected an image-text, "
        "multimodal, speech, sequence-to-sequence or causal language model."
    )


def _has_mlp(members: list[Block]) -> bool:
    return any(block.site.kind != "attention" for block in members)


def _numbered(tower: str, members: list[Block]) -> list[Site]:
    """Give each block its key: by layer index where every place has its own, else by position."""
    places = {_place(block): block.group for block in members if block.site.kind != "attention"}
    layers = [_layer(group) for group in places.values()]
    unique = len(set(layers)) == len(layers) and len({prefix for prefix, _ in layers}) == 1
    by_layer = unique and layers[0][1] is not None
    order = {place: number for number, place in enumerate(places)}
    sites, used = [], Counter[str]()
    for block in members:
        prefix, layer = _layer(block.group)
        number = order.get(_place(block), 0)
        if by_layer and prefix == layers[0][0] and layer is not None:
            number = layer
        elif block.site.kind == "attention":
            near = max(places, key=lambda place: _common(place, block.group), default=None)
            number = order.get(near or "", 0)
        key = f"{tower}.{number}{block.suffix}"
        used[key] += 1
        key = key if used[key] == 1 else f"{key}.{used[key] - 1}"
        sites.append(replace(block.site, key=key, tower=tower))
    return sites


def _place(block: Block) -> str:
    """What gets a number of its own: an MLP, or all experts of a layer together."""
    return block.group if block.suffix else block.site.path


def _layer(path: str) -> tuple[str, int | None]:
    """The path before its first number, and that number."""
    found = re.match(r"(.*?\.)?(\d+)(?:\.|$)", path)
    return (found[1] or "", int(found[2])) if found else (path, None)


def _common(one: str, other: str) -> int:
    """How many leading names two paths share."""
    pairs = list(zip(one.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


def _mark_dead(sites: list[Site], config: Any) -> list[Site]:
    """Mark blocks that run without effect on what the model says."""
    paths = {site.path for site in sites}
    texts = [
        path
        for site in sites
        if (path := site.path.replace(".output_query.", ".output.")) != site.path and path in paths
    ]
    dead = _unread(sites, config) | set(texts[-1:])  # only queries leave a Q-Former's last layer
    return [replace(site, dead=site.path in dead) for site in sites]


def _unread(sites: list[Site], config: Any) -> set[str]:
    """Paths in the vision layers after the last one that is read (state 0: the embeddings)."""
    vision = getattr(config, "vision_config", None)
    named = (
        getattr(config, "vision_feature_layer", None),
        getattr(config, "vision_feature_layers", None),
        getattr(vision, "feature_layer", None),
    )
    read = next((value for value in named if value is not None), None)
    if read is None:
        return set()
    indices = [read] if isinstance(read, int) else list(read)
    depth: dict[str, int] = {}
    layers = {site.path: _layer(site.path) for site in sites if site.tower == "vision"}
    for prefix, number in layers.values():
        if number is not None:
            depth[prefix] = max(depth.get(prefix, 0), number + 1)
    return {
        path
        for path, (prefix, number) in layers.items()
        if number is not None and number >= max(index % (depth[prefix] + 1) for index in indices)
    }
