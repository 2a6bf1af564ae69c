"""Which positions of a batch count, and the units of an activation that stand there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from expunge.encoding import Batch, placeholder_mask, predicting
from expunge.errors import InputError
from expunge.sites import Site

POSITIONS = ("all", "no_image", "image", "answer")
UNITS = ("token", "example")


@dataclass(frozen=True)
class Positions:
    """Which positions of a batch count.

    Attributes:
        language: Positions of the text, bool [batch, length].
        decoder: Positions of a decoder beside an encoder of the text, bool [batch, length].
        media: Masks of other inputs, bool [batch, anything] or of pixels [batch, height, width],
            for towers whose tokens they fit.
        exact: Whether some position must be left out, so that activations without a place in the
            text cannot simply be counted.
    """

    language: Tensor
    decoder: Tensor | None
    media: tuple[Tensor, ...]
    exact: bool
    _places: list[tuple[Tensor, Tensor | None]] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, model: Any, batch: Batch, chosen: str, towers: Iterable[str]) -> Positions:
        """The positions of a batch that are `chosen` (one of `POSITIONS`)."""
        main = position_mask(model, batch, chosen, towers)
        decodes = "decoder_input_ids" in batch.inputs
        language = batch.mask if decodes else main
        media = tuple(
            value.bool()
            for name, value in batch.inputs.items()
            if name == "pixel_mask"
            or name.endswith(("attention_mask", "features_mask"))
            and name not in ("attention_mask", "decoder_attention_mask")
            and value.ndim == 2
        )
        exact = chosen != "all" or not bool(main.all()) or not bool(language.all())
        return cls(language, main if decodes else None, media, exact)

    def places(self, mask: Tensor) -> Tensor | None:
        """Where a mask is true, as positions in it flattened, int64; None is everywhere.

        Looked up once for every mask, since a GPU has to be waited for.
        """
        for known, places in self._places:
            if known is mask:
                return places
        found = None if bool(mask.all()) else torch.nonzero(mask.flatten())[:, 0]
        self._places.append((mask, found))
        return found

    def mask(self, site: Site, z: Tensor) -> Tensor | None:
        """What counts of z [..., width]; None is everything."""
        if site.tower != "language":
            media = [_patches(z, m) for m in self.media] if site.tower == "vision" else self.media
            fits = [m for m in media if m.shape == z.shape[:-1]]
            if site.tower == "audio" and not fits:  # convolutions have made several frames one
                fits = [m[:, :: m.shape[1] // z.shape[1]] for m in self.media if _coarser(z, m)]
            return fits[0] if fits and "_query" not in site.path else None
        if self.decoder is not None and ".decoder." in f".{site.path}":
            return self.decoder
        return self.language


def _patches(z: Tensor, mask: Tensor) -> Tensor:
    """A mask of pixels as one of the square patches of z [batch, patches, width]; others as is."""
    side = math.isqrt(z.shape[-2])
    if mask.ndim != 3 or side**2 != z.shape[-2]:
        return mask
    return nn.functional.adaptive_max_pool2d(mask.float(), side).flatten(1) > 0


def _coarser(z: Tensor, mask: Tensor) -> bool:
    """Whether each unit of z [batch, n, width] stands for as many frames of a mask."""
    same = z.ndim == 3 and len(z) == len(mask)
    return same and z.shape[1] < mask.shape[1] and mask.shape[1] % z.shape[1] == 0


def position_mask(model: Any, batch: Batch, positions: str, towers: Iterable[str] = ()) -> Tensor:
    """Which positions of `batch.tokens` count, bool [batch, length]."""
    if positions == "answer":
        return predicting(batch.answer)
    whole = batch.decoder_mask if "decoder_input_ids" in batch.inputs else batch.mask
    if positions in ("no_image", "image"):
        held = placeholder_mask(model, batch, towers)
        return whole & (held if positions == "image" else ~held)
    return whole


def rows_of(
    site: Site, z: Tensor, tokens: Tensor | None, positions: Positions, unit: str, examples: int
) -> Tensor:
    """The units of an activation that count, [units, width].

    Args:
        site: Where it was recorded.
        z: The activation, [..., width].
        tokens: Positions in the flattened batch of an expert's tokens, else None.
        positions: Which positions count.
        unit: One of `UNITS`.
        examples: Examples in the batch.

    Raises:
        InputError: It cannot be told which units belong to which position or example.
    """
    units, owner, places = owned(site, z, tokens, positions, unit, examples)
    if owner is not None:
        return means(*sums(units, owner, examples))
    return units if places is None else units[places]


def owned(
    site: Site, z: Tensor, tokens: Tensor | None, positions: Positions, unit: str, examples: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Positions of z, [n, width]; counting per example whose each is; and which of them count.

    Arguments and errors are those of `rows_of`. Whose each is, int64 [n], is None counting per
    token; which count, int64 [m], is None for all, as it always is counting per example.
    """
    mask = positions.mask(site, z)
    if tokens is not None and mask is not None:
        kept = mask.flatten()[tokens]
        return z[kept], None if unit == "token" else tokens[kept] // mask.shape[1], None
    if mask is not None and z.ndim == 2 and len(z) == mask.numel():
        z = z.view(*mask.shape, -1)
    if mask is not None and z.shape[:-1] != mask.shape:
        if positions.exact:
            raise InputError(
                f"site {site.key} ({site.path}) gives {tuple(z.shape[:-1])} units for a text of"
                f" {tuple(mask.shape)}, so padding cannot be told apart; use a batch size of 1 and"
                " count all positions"
            )
        mask = None
    if unit == "token":
        return z.flatten(0, -2), None, None if mask is None else positions.places(mask)
    if examples > 1 and (z.ndim == 2 or len(z) != examples):
        raise InputError(
            f"site {site.key} ({site.path}) runs on {tuple(z.shape[:-1])} units for {examples}"
            " examples, so an example's own cannot be told apart; use a batch size of 1"
        )
    whole = torch.ones(z.shape[:-1], dtype=torch.bool, device=z.device) if mask is None else mask
    each = z.reshape(examples, -1, z.shape[-1])
    inside = whole.reshape(examples, -1)
    return each[inside], torch.nonzero(inside)[:, 0], None


def sums(z: Tensor, owner: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """Sum of the rows of z [n, width] per owner, float64, and how many each has, int64."""
    total = torch.zeros(examples, z.shape[1], dtype=torch.float64, device=z.device)
    total.index_add_(0, owner, z.double())
    return total, torch.bincount(owner, minlength=examples)


def means(total: Tensor, count: Tensor) -> Tensor:
    """Mean of the rows per owner; owners without rows are left out."""
    return total[count > 0] / count[count > 0, None]
