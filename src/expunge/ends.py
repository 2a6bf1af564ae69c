"""How a model ends an answer: the tokens, and the direction of its states that stands for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expunge.offload import kept_weight

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")


def end_tokens(model: Any) -> set[int]:
    """Ids of the tokens that end an answer."""
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(end) if isinstance(end, list) else set() if end is None else {end}


def final_norm(model: Any) -> nn.Module | None:
    """The normalisation between the last layer and the output embedding, None if none is known."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    norms = (getattr(decoder, name, None) for name in NORMS)
    return next((norm for norm in norms if isinstance(norm, nn.Module)), None)


@torch.inference_mode()
def end_directions(model: Any) -> Tensor | None:
    """Orthonormal directions of the last layer's state that make the ends of an answer likelier.

    The rows of the output embedding for the end tokens, less the mean row, through the scale of
    the final normalisation.

    Returns:
        float32 [hidden, ends] on the CPU; None where the model has no end tokens, no output
        embedding or no final normalisation of its states.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.device.type == "meta":
        weight = kept_weight(head, "weight")
    if weight is None or not weight.is_floating_point():
        return None
    ends = [i for i in sorted(end_tokens(model)) if i < len(weight)]
    norm = final_norm(model)
    if not ends or norm is None:
        return None
    found = (weight[ends].float() - weight.float().mean(0)).cpu() * _scale(norm, weight)
    basis, size, _ = torch.linalg.svd(found.T, full_matrices=False)
    return basis[:, size > 1e-6 * size.max()]


def _scale(norm: nn.Module, like: Tensor) -> Tensor:
    """What a normalisation multiplies each unit by, whatever it adds, float32 [hidden].

    Read off from a state of mean 0 and mean square 1, which every kind leaves as it is before.
    """
    state = torch.ones(1, like.shape[1])
    state[:, 1::2] = -1
    held = [p for p in norm.parameters() if p.device.type != "meta"]
    given = state.to(held[0].device if held else "cpu", like.dtype)
    out = (norm(given) - norm(-given)).float().cpu() / 2
    return (out / state)[0]
