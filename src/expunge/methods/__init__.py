"""The table of methods; a new one is a file beside this and a row here."""

from __future__ import annotations

from expunge.errors import unknown
from expunge.methods import (
    filter_search,
    filters,
    gated,
    gradient,
    manu,
    manu_released,
    prompting,
    random,
    saliency,
    selective,
    traits,
)
from expunge.methods.base import Evidence, Method, Outcome

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        gated.METHOD,
        manu.METHOD,
        filter_search.METHOD,
        filters.FILTER,
        filters.DIRECTIONS,
        filters.DIAGONAL,
        manu_released.METHOD,
        *selective.METHODS,
        saliency.SALIENCY,
        saliency.FISHER,
        traits.METHOD,
        *gradient.METHODS,
        prompting.METHOD,
        random.METHOD,
    )
}


def get(name: str) -> Method:
    """The method of that name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


__all__ = ["METHODS", "Evidence", "Method", "Outcome", "get"]
