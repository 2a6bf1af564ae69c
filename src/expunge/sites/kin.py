"""Language models that a Llama can compute: written as one, their MLPs may have biases."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import LlamaConfig

from expunge.sites.grow import added, made_of

KIN = ("Qwen2Model", "MistralModel")
"""Classes whose layers are those of a Llama, but for biases of attention that a Llama can have."""
KEPT_APART = ("model_type", "architectures", "attention_bias", "mlp_bias")

_known: WeakKeyDictionary[nn.Module, LlamaConfig | None] = WeakKeyDictionary()


def as_llama(model: nn.Module, owner: nn.Module) -> LlamaConfig | None:
    """The configuration of a Llama with the weights of a part of the model, if there is one.

    Args:
        model: A model with a configuration of its own beside that of its language model.
        owner: The language model in it.

    Returns:
        With `mlp_bias` off; None where a Llama would compute something else, or where the model
        does not take any language model that its configuration names.
    """
    if owner not in _known:
        _known[owner] = _llama_of(model, owner)
    return _known[owner]


def _llama_of(model: Any, owner: Any) -> LlamaConfig | None:
    written = getattr(getattr(model, "config", None), "text_config", None)
    if type(owner).__name__ not in KIN or written is None:
        return None
    mine = owner.config
    if written.model_type != mine.model_type or _windowed(mine):
        return None
    known = LlamaConfig().to_dict()
    same = {k: v for k, v in mine.to_dict().items() if k in known and k not in KEPT_APART}
    biased = owner.layers[0].self_attn.q_proj.bias is not None
    llama = LlamaConfig(**same, attention_bias=biased, mlp_bias=False)
    llama._attn_implementation = mine._attn_implementation
    return llama if _holds(model, owner, llama) else None


def _windowed(config: Any) -> bool:
    """Whether some layer sees only the last positions, which a Llama cannot."""
    if hasattr(config, "use_sliding_window"):
        return bool(config.use_sliding_window)
    return getattr(config, "sliding_window", None) is not None


def _holds(model: Any, owner: nn.Module, llama: LlamaConfig) -> bool:
    """Whether the model, made with that configuration, has a Llama and room for every weight.

    The configuration is asked as a file is read: some classes take any language model that they are
    given, but read always the same one.
    """
    written = {**model.config.to_dict(), "text_config": llama.to_dict()}
    try:
        config = type(model.config).from_dict(written)
    except (AttributeError, KeyError, TypeError, ValueError):  # reads no Llama at all
        return False
    path = next(name for name, module in model.named_modules() if module is owner)
    other = made_of(model, config)
    more = added(model, other)
    if other is None or more is None:
        return False
    return type(other.get_submodule(path)).__name__ == "LlamaModel" and all(
        name.endswith("o_proj.bias") for name in more
    )
