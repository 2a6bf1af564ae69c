"""Hidden states at the last position of a question, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from expunge.attacks.base import Candidate
from expunge.data import Example
from expunge.encoding import batches
from expunge.errors import InputError
from expunge.prefix import lean


@torch.inference_mode()
def prompt_states(
    candidate: Candidate, examples: Sequence[Example], condition: str, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """Run the questions with their answers and look at the position before the answer.

    Attention is causal, so that position knows nothing of the answer.

    Returns:
        Hidden states float32 [questions, layers + 1, width], the embeddings first and the last
        after the final normalisation, and the id of each answer's first token, int64 [questions].
    """
    model = candidate.model
    states: list[Tensor] = [torch.empty(0)] * len(examples)
    first = torch.zeros(len(examples), dtype=torch.int64)
    brief = lean(model)
    for batch in batches(model, candidate.prompter, examples, condition, batch_size=batch_size):
        out = model(**batch.inputs, output_hidden_states=True, **brief)
        if not getattr(out, "hidden_states", None):
            raise InputError(
                f"{type(model).__name__} returns no hidden states, so layers cannot be looked at;"
                " leave out the probe and lens attacks"
            )
        start = batch.answer.int().argmax(1)
        rows = torch.arange(len(batch.rows), device=start.device)
        layers = torch.stack([h[rows, start - 1] for h in out.hidden_states], 1).float().cpu()
        target = batch.tokens[rows, start].cpu()
        for place, i in enumerate(batch.rows):
            states[i], first[i] = layers[place], target[place]
    return torch.stack(states), first
