"""Hints at how the answer starts, and answers begun in the model's own mouth."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.attacks.base import (
    Attack,
    Candidate,
    Context,
    Result,
    Scorer,
    asking,
    compared,
    table,
)
from expunge.attacks.paraphrase import reworded
from expunge.data import Example
from expunge.evaluate import teacher_forced

GIVEN = (1, 2)
LEADS = ("It is", "The answer is")


def start(answer: str) -> str:
    """The first word of an answer, or of a single word its first half."""
    parts = answer.split()
    return parts[0] if len(parts) > 1 else answer[: max(1, len(answer) // 2)]


def letter_hint(text: str, example: Example) -> str:
    """The question, and the answer's first letter."""
    return f'{text} The answer starts with "{example.answer.strip()[:1]}".'


def word_hint(text: str, example: Example) -> str:
    """The question, and the answer's first word."""
    return f'{text} The answer starts with "{start(example.answer.strip())}".'


def begun(context: Context, given: int, lead: str = "") -> Scorer:
    """A scorer: 1 where all tokens after the first `given` are the arg max; one is always left.

    Words that tell nothing may lead the answer in, and are given too.
    """

    def score(candidate: Candidate, examples: Sequence[Example], condition: str) -> list[float]:
        forced = teacher_forced(
            candidate.model,
            candidate.prompter,
            examples,
            condition,
            answers=[f"{lead} {e.answer.strip()}" for e in examples] if lead else None,
            batch_size=context.batch_size,
        )
        spoken = candidate.prompter.tokenizer(lead, add_special_tokens=False).input_ids
        first = given + (len(spoken) if lead else 0)
        return [float(f.hits[min(first, len(f.hits) - 1) :].all()) for f in forced]

    return score


def run(context: Context) -> Result:
    """Ask with hints, then with the answer begun: by its first tokens, or by other words."""
    asked = {
        "as asked": asking(context),
        "first letter told": asking(context, reworded(letter_hint)),
        "first word told": asking(context, reworded(word_hint)),
    }
    forced = {"no token given": begun(context, 0)}
    forced |= {f"{n} token{'s'[: n > 1]} given": begun(context, n) for n in GIVEN}
    forced |= {f'led in by "{lead}"': begun(context, 0, lead) for lead in LEADS}
    rows = [*compared(context, asked), *compared(context, forced)]
    note = (
        "Told: 'The answer starts with ...' after the question. Given: the answer's first tokens"
        " stand there already, and every token after them must be the arg max. Led in: other words"
        " stand there, and every token of the answer must be; where vanilla does not answer behind"
        " them either, that says nothing."
    )
    return table("Answer prefix", rows, note)


ATTACK = Attack("prefix", "hints at how the answer starts, and answers already begun", run)
