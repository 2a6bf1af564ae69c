"""What questions hold, whatever they are stored as: hashes, salts, and what two sets share."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Sequence
from typing import Any

from expunge import formats
from expunge.data import Example
from expunge.errors import InputError
from expunge.formats.picture import load_image, pixel_digest


def check_overlap(
    forget: Sequence[Example], retain: Sequence[Example], *, allow_overlap: bool = False
) -> None:
    """Refuse a retain set that asks to keep what the forget set asks to remove.

    Args:
        forget: What to forget.
        retain: What to keep.
        allow_overlap: Skip the check.

    Raises:
        InputError: Some subject, or some question about the same picture, is in both; the message
            gives how many and no names.
    """
    if allow_overlap:
        return
    subjects = {e.subject for e in forget} & {e.subject for e in retain}
    seen: dict[str | bytes, str] = {}
    asked = _asked(forget, seen) & _asked(retain, seen)
    found = []
    if subjects:
        found.append(f"{len(subjects)} subject{'s' if len(subjects) > 1 else ''}")
    if asked:
        found.append(f"{len(asked)} identical question{'s' if len(asked) > 1 else ''}")
    if found:
        raise InputError(
            f"the forget and retain sets share {' and '.join(found)}; expected none. Remove them "
            "from one set, or allow the overlap explicitly."
        )


def fingerprint(examples: Iterable[Example]) -> str:
    """A hash of the content: 64 hexadecimal digits of SHA-256.

    Neither the order of the examples nor how an image is stored (path, bytes, PIL) matters, only
    fields and decoded pixels; repeated examples count.

    Raises:
        InputError: An image cannot be read.
    """
    seen: dict[str | bytes, str] = {}
    digests = []
    for example in examples:
        record = {k: getattr(example, k) for k in formats.plain.FIELDS}
        record["image"] = _pixels(example.image, seen)
        if record["letters"] is None:
            del record["letters"]  # so that a hash is what it was before there were any
        digests.append(hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def salted(subject: str, salt: str) -> str:
    """A short stand-in for a subject in files that others may see: 12 hexadecimal digits.

    HMAC-SHA256 under `salt`: without the salt, a guessed name cannot be confirmed.
    """
    return hmac.new(salt.encode(), subject.encode(), hashlib.sha256).hexdigest()[:12]


def salt_for(examples: Iterable[Example]) -> str:
    """A salt that follows from the data: the same for the same data, unknown to who lacks it.

    It differs from `fingerprint`, and neither leads to the other without the data's fingerprint
    being known; whoever publishes a fingerprint gives up the protection of this salt.
    """
    return hmac.new(b"expunge.salt", fingerprint(examples).encode(), hashlib.sha256).hexdigest()


def _asked(
    examples: Iterable[Example], seen: dict[str | bytes, str]
) -> set[tuple[str | None, str]]:
    asked: set[tuple[str | None, str]] = set()
    for example in examples:
        if example.question is not None and example.image is not None:
            asked.add((_pixels(example.image, seen), example.question.strip()))
        if example.text_question is not None:
            asked.add((None, example.text_question.strip()))
    return asked


def _pixels(image: Any, seen: dict[str | bytes, str]) -> str | None:
    """Hash of size and RGB values; `seen` remembers paths and bytes."""
    if image is None:
        return None
    if isinstance(image, str | bytes) and image in seen:
        return seen[image]
    digest = pixel_digest(load_image(image))
    if isinstance(image, str | bytes):
        seen[image] = digest
    return digest
