"""The table of attacks; a new one is a file beside this and a row here."""

from __future__ import annotations

from expunge.attacks import (
    collapse,
    leakage,
    lens,
    membership,
    paraphrase,
    prefix,
    probe,
    quantize,
    relearn,
    typographic,
    views,
)
from expunge.attacks.base import Attack

ATTACKS: dict[str, Attack] = {
    module.ATTACK.name: module.ATTACK
    for module in (
        relearn,
        quantize,
        paraphrase,
        views,
        prefix,
        typographic,
        leakage,
        probe,
        lens,
        membership,
        collapse,
    )
}
