"""A model asked by the prompts of MLLMU-Bench's release and scored by its rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from expunge.data import CONDITIONS, TASKS, Example, Suite
from expunge.encoding import Asked, encode, input_device
from expunge.errors import InputError
from expunge.evaluate import Tick, answer_length, written
from expunge.formats import mllmu
from expunge.formats.picture import load_image
from expunge.formats.signal import is_signal
from expunge.models import Prompter

Figures = dict[str, dict[str, dict[str, dict[str, float]]]]


@dataclass(frozen=True)
class Exam:
    """The questions of one task in one set under one condition.

    Attributes:
        name: The set.
        condition: `multi` or `text`.
        task: One of `data.TASKS`.
        shots: Worked examples that stand before every question.
        asked: The questions, without those among the worked examples.
    """

    name: str
    condition: str
    task: str
    shots: tuple[Example, ...]
    asked: tuple[Example, ...]


def exams(model: Any, suite: Suite, seed: int = 0) -> list[Exam]:
    """What `official` asks; the worked examples are drawn once for each exam, by the seed.

    Raises:
        InputError: A set holds something else than pictures beside its questions, or too few
            questions of a task to draw the worked examples from and ask others.
    """
    shots = shots_of(model)
    found = []
    for name, examples in suite.evaluated.items():
        if any(is_signal(e.image) for e in examples):
            raise InputError(
                f"{name}: the official prompts show pictures, found sounds or arrays beside the"
                " questions; leave the set or --official out"
            )
        for condition in CONDITIONS:
            for task in TASKS:
                rows = [e for e in examples if e.task == task and e.has(condition)]
                if rows:
                    found.append(_exam(name, condition, task, rows, shots, seed))
    return found


def _exam(
    name: str, condition: str, task: str, rows: Sequence[Example], shots: int, seed: int
) -> Exam:
    if task == "generation":
        return Exam(name, condition, task, (), tuple(rows))
    try:
        drawn = mllmu.draw_few_shot(rows, shots=shots, seed=seed)
        for each in rows:
            mllmu.official_prompt(each, condition=condition)
    except InputError as error:
        raise InputError(
            f"{name}, {task} under {condition}: {error}; or leave the set or --official out"
        ) from error
    asked = tuple(e for e in rows if not any(e is each for each in drawn))
    return Exam(name, condition, task, tuple(drawn), asked)


def shots_of(model: Any) -> int:
    """How many worked examples the release gives: one to an Idefics, else two."""
    return 1 if str(model.config.model_type).startswith("idefics") else 2


@torch.inference_mode()
def official(
    model: Any,
    processor: Any,
    suite: Suite,
    *,
    system: str | None = None,
    seed: int = 0,
    tick: Tick | None = None,
) -> Figures:
    """Ask every question of a suite by the release's prompt, greedily, and score it by its rule.

    The prompts are the release's own, without a chat template; where it writes `<image>` stands
    the image token of the processor. Answers may be as long as in `evaluate`, one at a time.

    Args:
        model: The model.
        processor: Its processor.
        suite: What to ask.
        system: Words that stand on lines of their own before every prompt.
        seed: Of the draw of worked examples.
        tick: Called with 1 after each question.

    Returns:
        set -> condition -> task -> means of `mllmu.official_score` and `n`, the number of
        questions asked.

    Raises:
        InputError: As `exams`, or the model does not take several pictures in one text.
    """
    prompter = _prompter(processor)
    found: Figures = {}
    for exam in exams(model, suite, seed):
        room = answer_length(prompter, exam.asked)
        scores = []
        for example in exam.asked:
            said = _said(model, prompter, exam, example, room, system)
            scores.append(mllmu.official_score(example, said))
            if tick:
                tick(1)
        means = {key: sum(s[key] for s in scores) / len(scores) for key in scores[0]}
        cell = {**means, "n": len(scores)}
        found.setdefault(exam.name, {}).setdefault(exam.condition, {})[exam.task] = cell
    return found


@torch.inference_mode()
def check(model: Any, processor: Any, suite: Suite, seed: int = 0) -> None:
    """Raise what `official` would: find the questions, and let a prompt of each kind be read."""
    found = exams(model, suite, seed)
    for exam in {(exam.condition, len(exam.shots)): exam for exam in found}.values():
        _said(model, _prompter(processor), exam, exam.asked[0], 1)


def _prompter(processor: Any) -> Prompter:
    """One whose texts get the tokens that the tokenizer adds by itself, but no chat template."""
    return Prompter(processor, template="{image}{question}")


def _said(
    model: Any,
    prompter: Prompter,
    exam: Exam,
    example: Example,
    room: int,
    system: str | None = None,
) -> str:
    """What the model writes to one question, in at most `room` tokens."""
    text = mllmu.official_prompt(example, condition=exam.condition, few_shot=exam.shots)
    token = str(getattr(prompter.processor, "image_token", None) or "<image>")
    prompt = (f"{system}\n" if system else "") + text.replace("<image>", token)
    shown = (*exam.shots, example) if exam.condition == "multi" else ()
    pictures = [load_image(e.image) for e in shown if e.image is not None]
    try:
        asked = [Asked(0, prompt, prompt, None)]
        batch = encode(model, prompter, asked, [pictures] if pictures else [])
        (said,) = written(model, prompter, batch.to(input_device(model), model.dtype), room)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{type(prompter.processor).__name__} and its model do not take an official prompt with"
            f" {len(pictures)} pictures ({first}); leave --official out"
        ) from error
    return said
