"""What enters the down projection of each expert of a mixture.

Experts whose weights are 3-D parameters have no module to hook. transformers lets their forward
pass be exchanged by name; while somebody listens, this module's own is in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from expunge.errors import InputError
from expunge.sites.blocks import is_transposed
from expunge.sites.weights import EDITABLE

Hear = Callable[[int, Tensor, Tensor], None]
"""Called with the index of an expert, z [n, width], and which of the tokens these are, int64 [n]
(positions in the flattened batch)."""

NAME = "expunge_listening"
# Experts that run every expert on its own copy of all tokens, zero where it was not routed.
DENSE = frozenset({"Llama4TextExperts"})


@contextlib.contextmanager
def listening(heard: Mapping[nn.Module, Hear]) -> Iterator[None]:
    """Within the block, each module's experts report what enters their down projections.

    Args:
        heard: Modules that hold the weights of experts, and whom they report to. The modules'
            outputs stay what they were to rounding; afterwards all is as before.

    Raises:
        InputError: Experts of a kind whose inside cannot be reached.
    """
    by_id = {id(module): hear for module, hear in heard.items()}
    name = f"{NAME}_{id(by_id)}"

    def forward(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        return _forward(module, hidden, index, weights, by_id.get(id(module)))

    before: list[tuple[Any, Any]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, before, name)
        ALL_EXPERTS_FUNCTIONS[name] = forward
        for module, hear in heard.items():
            if type(module).__name__ in DENSE:
                stack.callback(_hook_dense(module, hear))
                continue
            _check(module)
            config: Any = module.config
            before.append((config, config._experts_implementation))
            config._experts_implementation = name
        yield


def _restore(before: list[tuple[Any, Any]], name: str) -> None:
    for config, implementation in reversed(before):
        config._experts_implementation = implementation
    ALL_EXPERTS_FUNCTIONS.pop(name)


def _check(module: nn.Module) -> None:
    """Raise `InputError` unless transformers' experts interface runs the module."""
    kind, dtype = type(module).__name__, module.get_parameter("down_proj").dtype
    if dtype not in EDITABLE:
        raise InputError(
            f"the weights of {kind} are {dtype}, expected floating-point numbers of 16 bits or"
            " more; load the checkpoint unquantised"
        )
    if not (hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")):
        raise InputError(
            f"{kind} does not run through transformers' experts interface, so"
            " the neurons of its experts cannot be heard; leave the language tower out with"
            " --towers"
        )


def _forward(
    module: Any, hidden: Tensor, index: Tensor, weights: Tensor, hear: Hear | None
) -> Tensor:
    """Run the experts one by one.

    Args:
        module: The experts.
        hidden: What enters them, [tokens, in].
        index: Experts of each token, int64 [tokens, k]; one past the last expert means none.
        weights: How much each counts, [tokens, k], or of all experts, [tokens, experts].
        hear: Whom to report to.

    Returns:
        The weighted sum of what the experts say, [tokens, out].
    """
    result = torch.zeros_like(hidden)
    if weights.shape != index.shape:
        weights = weights.gather(1, index.clamp(max=weights.shape[1] - 1))
    for expert in torch.unique(index).tolist():
        if expert >= len(module.down_proj):
            continue
        tokens, slots = torch.where(index == expert)
        z = _hidden_units(module, hidden[tokens], expert)
        if hear is not None:
            hear(expert, z, tokens)
        said = _linear(module, "down_proj", z, expert)
        if getattr(module, "has_post_expert_norm", False):
            said = module.post_expert_norm(said)
        result.index_add_(0, tokens, (said * weights[tokens, slots, None]).to(result.dtype))
    return result


def _hidden_units(module: Any, hidden: Tensor, expert: int) -> Tensor:
    if getattr(module, "has_gate", True):
        gated: Tensor = module._apply_gate(_linear(module, "gate_up_proj", hidden, expert))
        return gated
    units: Tensor = module.act_fn(_linear(module, "up_proj", hidden, expert))
    return units


def _linear(module: Any, name: str, x: Tensor, expert: int) -> Tensor:
    weight = getattr(module, name)[expert]
    weight = weight.T if is_transposed(module) else weight
    bias = getattr(module, f"{name}_bias")[expert] if getattr(module, "has_bias", False) else None
    return functional.linear(x.to(weight.dtype), weight, bias)


def _hook_dense(module: Any, hear: Hear) -> Callable[[], None]:
    """Listen to experts whose input is every token once per expert, [experts * tokens, in]."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for expert, own in enumerate(
            inputs[0].view(len(module.down_proj), -1, inputs[0].shape[-1])
        ):
            tokens = torch.nonzero(own.any(-1))[:, 0]
            if tokens.numel():
                gate, up = (own[tokens] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
                hear(expert, up * module.act_fn(gate), tokens)

    handle: RemovableHandle = module.register_forward_pre_hook(hook)
    return handle.remove
