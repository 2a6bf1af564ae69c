"""From a question about a picture to the same question about a name."""

from __future__ import annotations

import re
import unicodedata

_WHO = r"(?:person|individual|man|woman|boy|girl|lady|gentleman|character|celebrity|subject)"
_PICTURE = r"(?:image|picture|photo|photograph|portrait|profile|biography)"
_SHOWN = (
    r"(?:\s+(?:who\s+is\s+|that\s+is\s+)?(?:shown|depicted|pictured|portrayed|featured|seen))?"
    rf"(?:\s+(?:in|on|from|of|by)\s+(?:the|this)\s+(?:above\s+)?{_PICTURE}|\s+here)"
)
_TAIL = re.compile(
    r"(?:\s+as)?(?:\s+(?:shown|depicted|pictured|portrayed|seen|stated|described))?"
    rf"\s+(?:in|on|from|of|by)\s+(?:the|this)\s+{_PICTURE}(?=\s*[?.!]*\s*$)",
    re.IGNORECASE,
)
_OWN = r"(?P<own>['’]s?)?(?![\w'’])"
_LEAD = re.compile(
    rf"^(?:(?:based|going)\s+on|in|from|according\s+to|looking\s+at)\s+(?:the|this)\s+{_PICTURE},?"
    r"\s+",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    rf"\b(?:(?:the|this|that)\s+{_WHO}(?:{_SHOWN}|\s+(?:shown|depicted|pictured))"
    rf"|this\s+{_WHO}|the\s+(?:person|individual)){_OWN}",
    re.IGNORECASE,
)
_AFTER_OBJECT = r"(?=\s*(?:[?.!,;:]|$|(?:in|at|on|with|to|for|and|or|from|by|as|when|while)\b))"
_PRONOUN = re.compile(
    rf"\b(?:(?:him|her){_AFTER_OBJECT}|(?P<own>his|hers?|their)|he|she)\b", re.IGNORECASE
)
_LEFT = re.compile(rf"\b(?:the|this)\s+{_PICTURE}\b|\bthis\s+{_WHO}\b|<image>", re.IGNORECASE)


def named(question: str, name: str, answer: str | None = None) -> str | None:
    """The question with `name` in the place of the words that point at a picture.

    Args:
        question: As asked beside the image, such as ``"Where does this person live?"``.
        name: The subject's name.
        answer: The reference answer, where it is known.

    Returns:
        The new question, or None where nothing points at the subject, where the picture is still
        needed, or where the question asks for the name or a part of it and would now contain its
        answer.
    """
    words = _LEAD.sub("", question)
    if words != question:
        words = words[:1].upper() + words[1:]
    for pattern in (_SUBJECT, _PRONOUN):
        words, count = pattern.subn(lambda m: f"{name}'s" if m["own"] else name, words)
        if count:
            break
    words = _TAIL.sub("", words)
    if not count or _LEFT.search(words.replace(name, "")) or _asks_name(words, name):
        return None
    return None if answer and _holds(name, answer) else words


def is_name(subject: str) -> bool:
    """Whether a subject reads as a name, so that it may stand in a question for whom it names.

    Two words or more of letters alone (with points, hyphens and apostrophes), of which the first
    and the last begin with a capital, or in a script without any. An id such as ``"42"`` or
    ``"person_7"`` is none, nor is a single word, which could be one.
    """
    words = subject.split()
    marks = all(c in " .'’-" or unicodedata.category(c)[0] in "LM" for c in subject)
    letters = [[c for c in word if unicodedata.category(c)[0] in "LM"] for word in words]
    if not marks or len(words) < 2 or not all(letters) or len(letters[-1]) < 2:
        return False
    return not (letters[0][0].islower() or letters[-1][0].islower())


def _holds(name: str, answer: str) -> bool:
    """Whether the answer, letter case and a point at its end aside, is the name or words of it."""
    told = re.escape(answer.strip().rstrip(".").casefold())
    return bool(told) and bool(re.search(rf"(?<!\w){told}(?!\w)", name.casefold()))


def _asks_name(words: str, name: str) -> bool:
    who = re.escape(name)
    asks = (
        rf"\bname\s+of\s+{who}(?![\w'’])",
        rf"{who}'s\s+(?:(?:full|first|last|given|family|complete|real)\s+)*(?:sur)?names?\b",
        rf"\bwho\s+is\s+{who}(?![\w'’])",
        rf"{who}\s+(?:called|named)\b",
    )
    return any(re.search(pattern, words, re.IGNORECASE) for pattern in asks)
