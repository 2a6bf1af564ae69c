"""Prompting: a system turn that forbids the subject; the weights stay as they are."""

from __future__ import annotations

from expunge.config import RunConfig
from expunge.errors import InputError
from expunge.methods.base import Evidence, Method, Outcome

PROMPT = (
    "Some people asked to be forgotten. Never answer a question about a private person, in words"
    " or in a picture: say that you do not know."
)
NAMED = "Never answer a question about these: {names}. Say that you do not know."


def decide(evidence: Evidence, config: RunConfig) -> Outcome:
    """No edit, and the words of the system turn; they name the subjects under `show_content` alone.

    Raises:
        InputError: The run has a prompt template, which has no place for a system turn.
    """
    if config.prompt_template:
        raise InputError(
            "prompting needs the processor's chat template, since a prompt template has no place"
            " for a system turn; leave --prompt-template out or choose another method"
        )
    if not config.show_content:
        return Outcome({}, system_prompt=PROMPT)
    assert evidence.access is not None
    names = ", ".join(evidence.access.subjects("forget"))
    return Outcome({}, system_prompt=NAMED.format(names=names))


METHOD = Method(
    name="prompting",
    about="no edit: a system prompt that forbids the subject (names it with --show-content)",
    decide=decide,
)
