"""How well a model reads ordinary English, and what an edit takes from that."""

from __future__ import annotations

import math

import torch

from expunge.metrics import bootstrap_ci
from general import held_out_prose, reference_prose


@torch.inference_mode()
def losses(model, processor, paragraphs) -> list[torch.Tensor]:
    """NLL of every token but the first of each paragraph, nats, float64."""
    found = []
    for paragraph in paragraphs:
        ids = processor.tokenizer(paragraph, return_tensors="pt")["input_ids"].to(model.device)
        logp = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        found.append(-logp.gather(-1, ids[0, 1:, None])[:, 0].cpu())
    return found


def prose(model, processor) -> dict[str, list[torch.Tensor]]:
    """NLL on text that no training saw: paragraphs of our own, and others' (see `general`)."""
    return {
        "own": losses(model, processor, held_out_prose()),
        "reference": losses(model, processor, reference_prose()),
    }


def perplexity(told: list[torch.Tensor]) -> float:
    """Exp of the mean NLL a token."""
    return math.exp(float(torch.cat(told).mean()))


def rise(before: list[torch.Tensor], now: list[torch.Tensor]) -> list[float]:
    """By which share perplexity has risen, and the ends of its 95 % interval over paragraphs."""
    more = torch.cat(now) - torch.cat(before)
    paragraph = [i for i, loss in enumerate(before) for _ in loss]
    return [math.expm1(m) for m in (float(more.mean()), *bootstrap_ci(more, paragraph))]
