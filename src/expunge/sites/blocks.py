"""Blocks: MLPs, experts and attention, known by the names and shapes of their linear maps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from expunge.errors import InputError

Layout = tuple[tuple[str, ...], str]

# (maps into the hidden units, map out of them), as paths below the block.
MLPS: tuple[Layout, ...] = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("gate_up_proj",), "down_proj"),
    (("up_proj",), "down_proj"),
    (("fc1",), "fc2"),
    (("fc1",), "hidden_layers.0"),
    (("fc_in",), "fc_out"),
    (("fc",), "c_proj"),
    (("c_fc",), "c_proj"),
    (("lin1",), "lin2"),
    (("linear1",), "linear2"),
    (("linear_1",), "linear_2"),
    (("linear_fc1",), "linear_fc2"),
    (("linear_in",), "linear_out"),
    (("input_linear",), "output_linear"),
    (("proj1",), "proj2"),
    (("w1", "w3"), "w2"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
    (("intermediate_query.dense",), "output_query.dense"),
    (("img_projection_up",), "img_projection_down"),
    (("up_proj_for_speech",), "down_proj_for_speech"),
    (("up_proj_for_vision_speech",), "down_proj_for_vision_speech"),
)
# (the map that makes queries, the map out of the attention heads), as paths below the block.
ATTENTIONS: tuple[Layout, ...] = (
    (("q_proj",), "o_proj"),
    (("q_b_proj",), "o_proj"),
    (("qkv_proj",), "o_proj"),
    (("q_proj",), "out_proj"),
    (("qkv_proj",), "out_proj"),
    (("q_proj",), "projection_layer"),
    (("q_proj",), "dense"),
    (("query_key_value",), "dense"),
    (("qkv",), "proj"),
    (("qkv",), "projection"),
    (("q",), "proj"),
    (("q",), "o"),
    (("c_attn",), "c_proj"),
    (("attention.query",), "output.dense"),
    (("self.query",), "output.dense"),
    (("to_q",), "to_out"),
)
# Parts that are not for pruning: pooling heads (their output is never read), routers of experts,
# adaptive norms, and what makes images or speech.
UNUSED = re.compile(r"PoolingHead$|Router|Norm$|Talker|Token2Wav|VQVAE")


@dataclass(frozen=True)
class Site:
    """One block whose hidden units can be pruned.

    Attributes:
        key: Stable name, such as ``language.12``, ``language.3.expert.5``, ``language.3.shared`` or
            ``language.3.attention``.
        tower: ``vision``, ``audio``, ``connector``, ``language`` or a declared name.
        kind: ``mlp``, ``expert`` (one slice of a 3-D expert weight) or ``attention``.
        path: Module path of the down projection; for ``expert`` that of the module that holds the
            weights of all experts.
        width: Number of neurons.
        parameters: Parameters of the block that belong to this site, biases included.
        dead: Whether the model never uses the block's output.
        expert: Index of the expert, where there are several.
    """

    key: str
    tower: str
    kind: str
    path: str
    width: int
    parameters: int
    dead: bool
    expert: int | None = None


class Block(NamedTuple):
    """A site that has no tower and no number yet.

    Attributes:
        group: Path that all parts of one layer's MLP share; for experts their parent.
        suffix: What the key says after the number, such as ``.expert.5``.
        site: The site, with an empty key and tower.
    """

    group: str
    suffix: str
    site: Site


def inside(path: str, root: str) -> bool:
    """Whether a module path is `root` or lies below it (everything lies below ``""``)."""
    return root == "" or path == root or path.startswith(root + ".")


def features(module: nn.Module | None) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer of any make: plain, quantised, adapted, or GPT-2's."""
    first, second = ("nx", "nf") if hasattr(module, "nx") else ("in_features", "out_features")
    inputs, outputs = getattr(module, first, None), getattr(module, second, None)
    return (inputs, outputs) if isinstance(inputs, int) and isinstance(outputs, int) else None


def blocks(model: nn.Module, attention: bool) -> Iterator[Block]:
    """All blocks of known layout, in module order."""
    unused: list[str] = []
    for path, module in model.named_modules():
        if UNUSED.search(type(module).__name__):
            unused.append(path)
        if any(inside(path, root) for root in unused):
            continue
        _refuse_grouped(module, path)
        if is_experts(module):
            yield from _experts(module, path)
            continue
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield from in_order(module, path)
        yield from _mlps(module, path)
        if attention:
            yield from _attentions(module, path)


def _refuse_grouped(module: nn.Module, path: str) -> None:
    weight = module._parameters.get("weight")
    if weight is not None and weight.ndim == 3 and features(module) is not None:
        raise InputError(
            f"{path} ({type(module).__name__}) holds the weights of {len(weight)} experts as one"
            " linear map, and which tokens go to which expert cannot be heard there; newer versions"
            " of transformers may keep this model's experts in a layout that is known"
        )


def in_order(module: nn.Module, path: str) -> Iterator[Block]:
    """MLPs made of a module's own linear layers, if they run in order with something between."""
    linears = [
        (index, name, child, shape)
        for index, (name, child) in enumerate(module.named_children())
        if (shape := features(child)) is not None
    ]
    for (first, _, up, (_, hidden)), (second, name, down, (width, _)) in pairwise(linears):
        if second - first > 1 and hidden == width:
            yield _mlp(f"{path}.{name}".lstrip("."), width, [up, down])


def is_experts(module: nn.Module) -> bool:
    """Whether a module keeps the weights of all its experts in 3-D parameters."""
    down = module._parameters.get("down_proj")
    return down is not None and down.ndim == 3


def is_transposed(experts: nn.Module) -> bool:
    """Whether down weights are ``(experts, width, out)`` rather than ``(experts, out, width)``."""
    flag = getattr(experts, "is_transposed", None)
    if flag is not None:
        return bool(flag)
    down, up = experts._parameters["down_proj"], experts._parameters.get("gate_up_proj")
    return down is not None and up is not None and up.shape[2] == 2 * down.shape[1]


def matched(module: nn.Module, layout: Layout) -> list[tuple[nn.Module, tuple[int, int]]] | None:
    """The linear maps a layout names, the one out of the hidden units last, with their shapes."""
    found = []
    for path in (*layout[0], layout[1]):
        part: nn.Module | None = module
        for name in path.split("."):
            part = part._modules.get(name) if part is not None else None
        shape = features(part)
        if part is None or shape is None:
            return None
        found.append((part, shape))
    return found


def _mlps(module: nn.Module, path: str) -> Iterator[Block]:
    taken: set[str] = set()
    for layout in MLPS:
        maps = None if layout[1] in taken else matched(module, layout)
        if maps is None:
            continue
        *ups, (_, (width, _)) = maps
        made = {outputs for _, (_, outputs) in ups}
        fused = len(ups) == 1 and made == {2 * width}
        if made == {width} or fused:
            taken.add(layout[1])
            yield _mlp(f"{path}.{layout[1]}".lstrip("."), width, [each for each, _ in maps])


def _mlp(down: str, width: int, maps: list[nn.Module]) -> Block:
    """The block of an MLP; says which part of a mixture of experts it is, if of any."""
    path = down.rpartition(".")[0]
    expert = re.fullmatch(r"(.*)\.experts\.(\d+)", path)
    shared = re.fullmatch(r"(.*)\.shared_(?:experts?|mlp)", path)
    group, suffix, index = path, "", None
    if expert:
        group, suffix, index = expert[1], f".expert.{expert[2]}", int(expert[2])
    elif shared:
        group, suffix = shared[1], ".shared"
    parameters = sum(p.numel() for each in maps for p in each.parameters())
    return Block(group, suffix, Site("", "", "mlp", down, width, parameters, False, index))


def _experts(module: nn.Module, path: str) -> Iterator[Block]:
    down = module._parameters["down_proj"]
    assert isinstance(down, torch.Tensor)
    width = down.shape[1 if is_transposed(module) else 2]
    each = sum(p[0].numel() for p in module.parameters(recurse=False) if len(p) == len(down))
    group, _, name = path.rpartition(".")
    part = "shared" if name.startswith("shared") else "expert"
    for index in range(len(down)):
        site = Site("", "", "expert", path, width, each, False, index)
        yield Block(group, f".{part}.{index}", site)


def _attentions(module: nn.Module, path: str) -> Iterator[Block]:
    for layout in ATTENTIONS:
        maps = matched(module, layout)
        if maps is not None:
            down, width = f"{path}.{layout[1]}".lstrip("."), maps[-1][1][0]
            parameters = sum(p.numel() for p in module.parameters())
            yield Block(
                path, ".attention", Site("", "", "attention", down, width, parameters, False)
            )
            return
