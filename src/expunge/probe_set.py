"""Questions encoded once, so that many edits of one model can be compared in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.data import Example
from expunge.encoding import Batch
from expunge.evaluate import Answers
from expunge.models import Prompter
from expunge.prefix import Shared, begun, shared_batches

LIKELIEST = 1024
"""Tokens held apart of what a model expects at a position; the others count as one."""


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


@dataclass(frozen=True)
class Expected:
    """What a model expects at some positions: its likeliest tokens, and any other.

    Attributes:
        tokens: int64 [positions, tokens].
        shares: Their probabilities, and that of all others together, [positions, tokens + 1].
    """

    tokens: Tensor
    shares: Tensor

    @classmethod
    def of(cls, logp: Tensor) -> Expected:
        """From log-probabilities [positions, vocabulary]."""
        found = logp.topk(min(LIKELIEST, logp.shape[1]))
        return cls(found.indices, with_others(found.values).exp())

    def cross_entropy(self, logp: Tensor) -> Tensor:
        """Mean NLL of tokens drawn from it, [positions], under others' log-probabilities."""
        return -(self.shares * with_others(logp.gather(-1, self.tokens))).sum(-1)


def with_others(logp: Tensor) -> Tensor:
    """Log-probabilities [positions, tokens], and after them that of all other tokens together."""
    rest = 1 - logp.double().exp().sum(-1, keepdim=True)
    return torch.cat([logp, rest.clamp_min(1e-9).log().to(logp.dtype)], -1)


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
        self.expected: list[Expected] = []
        self.likely = 0.0

    @torch.inference_mode()
    def expect(self, model: Any) -> None:
        """From now on score, beside the tokens of the answers, what this model expects there.

        The NLL of tokens that a model drew is, in the mean over draws, the cross-entropy with all
        that it might have drawn; of one draw it says the same with far more noise. But that holds
        only as far as the tokens are what it expects: by its entropy over its NLL, at most 1. The
        cross-entropy counts by that share and the tokens by the rest, and both together again by
        that share, since what a model hardly expects is nothing to keep.
        """
        found, entropy, nll = [], 0.0, 0.0
        for each in self.batches:
            answers = Answers.of(model, begun(model, each))
            found.append(Expected.of(answers.logp))
            entropy += float(found[-1].cross_entropy(answers.logp).double().sum())
            nll -= float(answers.tokens().double().sum())
        self.expected, self.likely = found, min(1.0, entropy / nll) if nll else 1.0

    @torch.inference_mode()
    def run(self, model: Any, places: Sequence[int] | None = None) -> Forcing:
        """Score the questions under the model as it is now.

        Args:
            model: The model.
            places: Of the batches to run; all without. Questions of the others have 0.
        """
        recalled = torch.zeros(self.size, dtype=torch.bool)
        nll = torch.zeros(self.size, dtype=torch.float64)
        for place in range(len(self.batches)) if places is None else places:
            batch = begun(model, self.batches[place])
            answers = Answers.of(model, batch)
            loss, rows = -answers.tokens().double(), answers.row
            if self.expected:
                mean = self.expected[place].cross_entropy(answers.logp).double()
                loss = self.likely * (loss + self.likely * (mean - loss))
            hit = (answers.logp.argmax(-1) == answers.target).double()
            counts = torch.zeros(answers.size, dtype=torch.float64, device=rows.device)
            counts.index_add_(0, rows, torch.ones_like(hit))
            total = torch.zeros_like(counts).index_add_(0, rows, loss)
            hits = torch.zeros_like(counts).index_add_(0, rows, hit)
            index = torch.tensor(batch.rows)
            recalled[index] = (hits == counts).cpu()
            nll[index] = (total / counts).cpu()
        return Forcing(recalled, nll)
