"""Ask a model every question of a suite and score what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge import metrics
from expunge.data import CONDITIONS, Example, Suite
from expunge.encoding import Batch, predicting
from expunge.ends import end_tokens
from expunge.models import Prompter, accepts
from expunge.prefix import begun, shared_batches
from expunge.scores import alignment, cells

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Answered:
    """How a model did on one example under one condition.

    Attributes:
        example: What was asked.
        said: The greedy answer; for `classification` the likeliest choice.
        right: Whether it counts as right, by the rule of the example's task.
        rouge_l: ROUGE-L F1 of `said`.
        nll: Mean negative log-likelihood of the reference answer's tokens, in nats.
        memorised: Share of the reference's tokens that are the arg max under teacher forcing.
        extraction: Extraction strength in [0, 1].
        truth_ratio: Wrong choices' likelihood over the right one's; None without choices.
    """

    example: Example
    said: str
    right: bool
    rouge_l: float
    nll: float
    memorised: float
    extraction: float
    truth_ratio: float | None = None

    def shown(self, condition: str) -> dict[str, str]:
        """Subject, question and answer, for whoever asked to see them."""
        question = self.example.prompt(condition)
        return {"subject": self.example.subject, "question": question, "answer": self.said}


@dataclass(frozen=True)
class Forced:
    """One answer under teacher forcing: token log-probabilities and arg-max hits."""

    logp: Tensor
    hits: Tensor
    closed: bool

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the answer's tokens."""
        return -float(self.logp.mean())


def answer_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits that predict the answer tokens and what follows them.

    Returns:
        Logits [positions, vocabulary] in float32 or better, and where they stand, bool
        [batch, length]: each position predicts the token after it.
    """
    at = batch.answer.clone()
    rows = torch.nonzero(batch.closing >= 0)[:, 0]
    at[rows, batch.closing[rows]] = True
    predicts = predicting(at)
    if accepts(model, "logits_to_keep"):
        columns = torch.nonzero(predicts.any(0))[:, 0]
        logits = model(**batch.inputs, logits_to_keep=columns, use_cache=False).logits
        return _exact(logits[predicts[:, columns]]), predicts
    logits = model(**batch.inputs, use_cache=False).logits
    return _exact(logits[predicts]), predicts


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class Answers:
    """What a model makes of the answer tokens of a batch.

    Attributes:
        logp: Log-probabilities at the positions that predict them, float32 [tokens, vocabulary].
        target: The answer tokens, int64 [tokens].
        row: Example of each token, int64 [tokens].
        size: Number of examples.
    """

    logp: Tensor
    target: Tensor
    row: Tensor
    size: int

    @classmethod
    def of(cls, model: Any, batch: Batch) -> Answers:
        """Run the model on a batch."""
        logits, predicts = answer_logits(model, batch)
        where = torch.nonzero(predicts)
        inside = batch.answer[where[:, 0], where[:, 1] + 1]
        where, logp = where[inside], logits[inside].log_softmax(-1)
        target = batch.tokens[where[:, 0], where[:, 1] + 1]
        return cls(logp, target, where[:, 0], len(batch.rows))

    def tokens(self) -> Tensor:
        """Log-probability of each answer token, [tokens]."""
        return self.logp.gather(-1, self.target[:, None])[:, 0]

    def totals(self) -> Tensor:
        """Log-probability of each example's whole answer, [size]."""
        token = self.tokens()
        return token.new_zeros(self.size).index_add(0, self.row, token)

    def losses(self) -> Tensor:
        """Mean negative log-likelihood of each example's answer tokens, nats, [size]."""
        return -self.totals() / torch.bincount(self.row, minlength=self.size).clamp_min(1)


@torch.inference_mode()
def teacher_forced(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    answers: Sequence[str] | None = None,
    batch_size: int = 64,
    tick: Tick | None = None,
) -> list[Forced]:
    """Token log-probabilities of the reference answers (or `answers`) given the questions."""
    found: list[Forced | None] = [None] * len(examples)
    ends = end_tokens(model)
    for each in shared_batches(
        model, prompter, examples, condition, batch_size=batch_size, answers=answers
    ):
        batch = begun(model, each)
        logits, predicts = answer_logits(model, batch)
        logp = logits.log_softmax(-1)
        where = torch.nonzero(predicts)
        target = batch.tokens[where[:, 0], where[:, 1] + 1]
        token_logp = logp.gather(-1, target[:, None])[:, 0].cpu()
        best = logp.argmax(-1)
        hit = (best == target).cpu()
        ending = torch.tensor([int(b) in ends for b in best])
        inside = batch.answer[where[:, 0], where[:, 1] + 1].cpu()
        rows = where[:, 0].cpu()
        for place, i in enumerate(batch.rows):
            mine = rows == place
            after = mine & ~inside
            closed = bool(after.any()) and bool((hit & ending)[after].all())
            found[i] = Forced(token_logp[mine & inside], hit[mine & inside], closed)
        if tick:
            tick(len(batch.rows))
    return [f for f in found if f is not None]


@torch.inference_mode()
def generate(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    tick: Tick | None = None,
) -> list[str]:
    """Greedy answers."""
    said = [""] * len(examples)
    for each in shared_batches(
        model, prompter, examples, condition, batch_size=batch_size, prompt_only=True
    ):
        batch = begun(model, each)
        for i, text in zip(
            batch.rows, written(model, prompter, batch, max_new_tokens), strict=True
        ):
            said[i] = text
        if tick:
            tick(len(batch.rows))
    return said


def written(model: Any, prompter: Prompter, batch: Batch, max_new_tokens: int) -> list[str]:
    """What the model writes to the prompts of a batch, greedily, without blanks around it."""
    out = model.generate(
        **batch.inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=prompter.pad,
    )
    asked = batch.inputs["input_ids"]
    length = asked.shape[1]
    if out.shape[1] > length and torch.equal(out[:, :length], asked):
        out = out[:, length:]
    words = prompter.tokenizer.batch_decode(out, skip_special_tokens=True)
    return [text.strip() for text in words]


def answer_length(prompter: Prompter, examples: Sequence[Example]) -> int:
    """Room for an answer: twice the longest reference and eight tokens, at most 256."""
    lengths = [
        len(prompter.tokenizer(e.answer, add_special_tokens=False).input_ids) for e in examples
    ]
    return min(256, 2 * max(lengths, default=0) + 8)


def ask(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    condition: str,
    *,
    batch_size: int = 64,
    tick: Tick | None = None,
) -> list[Answered]:
    """Score every example that has a form under `condition`.

    An answer whose every token, and the end after it, is the arg max under teacher forcing is
    what greedy decoding gives; only the others are generated.
    """
    usable = [e for e in examples if e.has(condition)]
    forced = teacher_forced(model, prompter, usable, condition, tick=tick, batch_size=batch_size)
    choosing = [i for i, e in enumerate(usable) if e.task == "classification" and e.choices]
    picks = _choose(model, prompter, usable, choosing, forced, condition, batch_size)
    told = {
        i: usable[i].answer.strip()
        for i, f in enumerate(forced)
        if i not in picks
        and f.closed
        and bool(f.hits.all())
        and _continues(prompter, usable[i], condition)
    }
    rest = [i for i in range(len(usable)) if i not in picks and i not in told]
    said = generate(
        model,
        prompter,
        [usable[i] for i in rest],
        condition,
        max_new_tokens=answer_length(prompter, usable),
        batch_size=batch_size,
    )
    told |= dict(zip(rest, said, strict=True))
    return [
        _answered(e, f, picks[i] if i in picks else (told[i], None))
        for i, (e, f) in enumerate(zip(usable, forced, strict=True))
    ]


def _continues(prompter: Prompter, example: Example, condition: str) -> bool:
    """Whether the tokens of question and answer begin with those of the question alone."""
    asked, told = (
        prompter.tokenizer(
            prompter.render(example, condition, answer), add_special_tokens=False
        ).input_ids
        for answer in (None, example.answer)
    )
    return list(told[: len(asked)]) == list(asked)


def _choose(
    model: Any,
    prompter: Prompter,
    examples: Sequence[Example],
    chosen: Sequence[int],
    forced: Sequence[Forced],
    condition: str,
    batch_size: int,
) -> dict[int, tuple[str, float]]:
    """Likeliest choice by mean token log-probability, and the truth ratio, by example.

    Of choices that are equally likely the first is taken, wherever the right one stands.
    """
    pairs = [(i, c) for i in chosen for c in examples[i].choices or () if c != examples[i].answer]
    wrong = teacher_forced(
        model,
        prompter,
        [examples[i] for i, _ in pairs],
        condition,
        answers=[c for _, c in pairs],
        batch_size=batch_size,
    )
    scores: dict[int, dict[str, float]] = {i: {examples[i].answer: -forced[i].nll} for i in chosen}
    for (i, choice), one in zip(pairs, wrong, strict=True):
        scores[i][choice] = -one.nll
    picks = {}
    for i, score in scores.items():
        right = examples[i].answer
        others = [s for c, s in score.items() if c != right]
        ratio = metrics.truth_ratio(others, score[right]) if others else math.nan
        choices = list(examples[i].choices or ())
        told = np.nan_to_num([score[c] for c in choices], nan=-math.inf, neginf=-math.inf)
        picks[i] = (choices[metrics.likeliest_choice(told)], ratio)
    return picks


def _answered(example: Example, forced: Forced, told: tuple[str, float | None]) -> Answered:
    said, ratio = told
    if example.task == "classification" and example.choices:
        right = said == example.answer
    elif example.task == "cloze":
        right = metrics.cloze(said, example.answer)
    else:
        right = metrics.accuracy(said, example.answer)
    hits = forced.hits.numpy()
    return Answered(
        example,
        said,
        right,
        metrics.rouge_l(said, example.answer),
        forced.nll,
        metrics.exact_memorisation(hits),
        metrics.extraction_strength(hits),
        ratio,
    )


def evaluate(
    model: Any,
    processor: Any,
    suite: Suite,
    *,
    prompter: Prompter | None = None,
    batch_size: int = 64,
    seed: int = 0,
    tick: Tick | None = None,
    hear: Callable[[str, str, list[Answered]], None] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Score a model on every set of a suite under both conditions.

    Args:
        model: The model.
        processor: Its processor.
        suite: What to ask.
        prompter: How conversations are rendered; by default as the processor's template says.
        batch_size: Examples per forward pass.
        seed: Of the bootstrap behind the confidence intervals.
        tick: Called with the number of examples done after each batch.
        hear: Called with set, condition and the answers to it.

    Returns:
        set -> condition -> what `scores.cells` tells, under `multi` with `alignment` beside it; a
        condition no row of a set can be asked under is left out.
    """
    prompter = prompter or Prompter(processor)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, examples in suite.evaluated.items():
        answered: dict[str, list[Answered]] = {}
        for condition in CONDITIONS:
            rows = ask(model, prompter, examples, condition, batch_size=batch_size, tick=tick)
            if rows:
                found.setdefault(name, {})[condition] = cells(rows, seed, name=name)
                answered[condition] = rows
                if hear:
                    hear(name, condition, rows)
        alike = alignment(*(answered.get(c, ()) for c in CONDITIONS))
        if alike:
            found[name]["multi"]["alignment"] = alike
    return found
