"""Logit lens: how far up the answer stands in what each layer would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expunge.attacks.base import ASKED_WITH, MODELS, Attack, Candidate, Context, Result
from expunge.attacks.states import prompt_states
from expunge.data import CONDITIONS, Example
from expunge.ends import NORMS, final_norm
from expunge.errors import InputError

NEAR = 10


@torch.inference_mode()
def ranks(
    candidate: Candidate, examples: Sequence[Example], condition: str, batch_size: int = 64
) -> Tensor:
    """Rank of the answer's first token by layer, 1 the likeliest, int64 [questions, layers + 1].

    Each layer's state goes through the final normalisation and the output embedding; the last
    state has been normalised already. Equal logits count as ahead, half of them.
    """
    model = candidate.model
    states, first = prompt_states(candidate, examples, condition, batch_size)
    head = model.get_output_embeddings()
    norm = final_norm(model)
    if norm is None:
        raise InputError(
            f"{type(model.get_decoder()).__name__} has none of {', '.join(NORMS)}, so its layers"
            " cannot be read as logits; leave out the lens attack"
        )
    device, dtype = head.weight.device, head.weight.dtype
    found = []
    for layer in range(states.shape[1]):
        state = states[:, layer].to(device, dtype)
        if layer < states.shape[1] - 1:
            state = norm(state)
        logits = head(state).float().cpu()
        own = logits.gather(-1, first[:, None])
        ahead = (logits > own).sum(1)
        equal = (logits == own).sum(1) - 1
        found.append(1 + ahead + equal // 2)
    return torch.stack(found, 1)


def run(context: Context) -> Result:
    """Rank the forget answers' first token at every layer."""
    rows: list[list[Any]] = []
    curves: dict[str, list[list[float]]] = {}
    figures: dict[str, float | None] = {}
    for condition in CONDITIONS:
        examples = context.sample("forget", condition)
        if not examples:
            continue
        found = {
            name: ranks(c, examples, condition, context.batch_size).double()
            for name, c in context.models.items()
        }
        label = ASKED_WITH[condition]
        near = {name: (r <= NEAR).double().mean(0) for name, r in found.items()}
        for layer in range(found["unlearned"].shape[1]):
            medians = [float(found[m][:, layer].median()) if m in found else None for m in MODELS]
            shares = [float(near[m][layer]) if m in found else None for m in MODELS]
            rows.append([layer, label, *medians, *shares])
        for name, share in near.items():
            curves[f"{name}, {label}"] = [[i, float(v)] for i, v in enumerate(share)]
        if "gold" in near:
            lead = near["unlearned"] - near["gold"]
            figures[f"most above gold, {label}"] = float(lead.max())
    return {
        "title": "Logit lens",
        "columns": [
            "layer",
            "asked with",
            *(f"median rank, {m}" for m in MODELS),
            *(f"in the first {NEAR}, {m}" for m in MODELS),
        ],
        "rows": rows,
        "curves": curves,
        "axes": ["layer (0 is the embedding)", f"share of answers among the first {NEAR}"],
        "note": (
            "Rank of the answer's first token when a layer's state at the last position of the"
            " question is read by the output embedding (layer 0 is the embedding); curves and"
            f" shares show how many answers stand among the first {NEAR}."
        ),
        "figures": figures,
    }


ATTACK = Attack("lens", "rank of the answer's first token at each layer", run)
