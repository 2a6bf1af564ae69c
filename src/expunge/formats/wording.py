"""From a question about a picture to the same question about a name."""

from __future__ import annotations

import re

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


def named(question: str, name: str) -> str | None:
    """The question with `name` in the place of the words that point at a picture.

    Args:
        question: As asked beside the image, such as ``"Where does this person live?"``.
        name: The subject's name.

    Returns:
        The new question, or None where nothing points at the subject, where the picture is still
        needed, or where the question asks for the name itself and would now contain its answer.
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
    return words


def _asks_name(words: str, name: str) -> bool:
    who = re.escape(name)
    asks = (
        rf"\bname\s+of\s+{who}(?![\w'’])",
        rf"{who}'s\s+(?:(?:full|first|last|given|family|complete|real)\s+)*(?:sur)?names?\b",
        rf"\bwho\s+is\s+{who}(?![\w'’])",
        rf"{who}\s+(?:called|named)\b",
    )
    return any(re.search(pattern, words, re.IGNORECASE) for pattern in asks)
