"""Questions encoded once, so that many edits of one model can be compared in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.data import Example
from expunge.encoding import Batch
from expunge.evaluate import answer_logits
from expunge.models import Prompter
from expunge.prefix import Shared, begun, shared_batches


@dataclass(frozen=True)
class Forcing:
    """How a model does on a set of questions under teacher forcing, a value per question.

    Attributes:
        recalled: Every answer token is the arg max, bool [n].
        nll: Mean negative log-likelihood of the answer tokens, nats, [n].
    """

    recalled: Tensor
    nll: Tensor

    def divided(self, first: int) -> tuple[Forcing, Forcing]:
        """The first questions and the others."""
        recalled, nll = self.recalled, self.nll
        return Forcing(recalled[:first], nll[:first]), Forcing(recalled[first:], nll[first:])

    @property
    def accuracy(self) -> float:
        """Share of questions recalled."""
        return float(self.recalled.double().mean())

    @property
    def mean_nll(self) -> float:
        """Mean of `nll`."""
        return float(self.nll.mean())


class ProbeSet:
    """Questions under one condition, encoded and ready to run.

    Args:
        model: For its device and dtype.
        prompter: How conversations are rendered.
        examples: Questions; those without a form under `condition` are left out.
        condition: `multi` or `text`.
        batch_size: Questions per forward pass.
    """

    def __init__(
        self,
        model: Any,
        prompter: Prompter,
        examples: Sequence[Example],
        condition: str,
        *,
        batch_size: int = 64,
    ) -> None:
        usable = [e for e in examples if e.has(condition)]
        self.condition, self.size = condition, len(usable)
        self.batches: list[Batch | Shared] = list(
            shared_batches(model, prompter, usable, condition, batch_size=batch_size)
        )

    @torch.inference_mode()
    def run(self, model: Any, places: Sequence[int] | None = None) -> Forcing:
        """Score the questions under the model as it is now.

        Args:
            model: The model.
            places: Of the batches to run; all without. Questions of the others have 0.
        """
        recalled = torch.zeros(self.size, dtype=torch.bool)
        nll = torch.zeros(self.size, dtype=torch.float64)
        for each in self.batches if places is None else [self.batches[i] for i in places]:
            batch = begun(model, each)
            logits, predicts = answer_logits(model, batch)
            where = torch.nonzero(predicts)
            inside = batch.answer[where[:, 0], where[:, 1] + 1]
            logits, where = logits[inside], where[inside]
            target = batch.tokens[where[:, 0], where[:, 1] + 1]
            logp = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0].double()
            hit = (logits.argmax(-1) == target).double()
            rows = where[:, 0]
            counts = torch.zeros(len(batch.rows), dtype=torch.float64, device=rows.device)
            counts.index_add_(0, rows, torch.ones_like(hit))
            total = torch.zeros_like(counts).index_add_(0, rows, logp)
            hits = torch.zeros_like(counts).index_add_(0, rows, hit)
            index = torch.tensor(batch.rows)
            recalled[index] = (hits == counts).cpu()
            nll[index] = (-total / counts).cpu()
        return Forcing(recalled, nll)
