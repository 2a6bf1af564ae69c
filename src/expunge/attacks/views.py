"""The same pictures seen otherwise: cropped, lit, mirrored, turned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import ImageEnhance, ImageOps
from PIL.Image import Image

from expunge.attacks.base import Attack, Context, Result, Rewrite, asking, compared, table
from expunge.data import Example
from expunge.formats.picture import cropped, load_image, turned

KEPT = 0.8
TURN = 15


def crop(image: Image) -> Image:
    """The middle `KEPT` of both sides, at the old size."""
    margin = (1 - KEPT) / 2
    return cropped(image, margin, margin, margin, margin)


VIEWS: dict[str, Callable[[Image], Image]] = {
    "cropped": crop,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: turned(image, TURN),
}


def seen(change: Callable[[Image], Image]) -> Rewrite:
    """A rewrite that puts the picture through `change`."""

    def rewrite(example: Example, condition: str) -> Example:
        return replace(example, image=change(load_image(example.image or b"")))

    return rewrite


def run(context: Context) -> Result:
    """Ask with every view of the forget subjects' pictures."""
    variants = {"as given": asking(context)}
    variants |= {name: asking(context, seen(change)) for name, change in VIEWS.items()}
    rows = compared(context, variants, conditions=("multi",))
    note = f"The middle {KEPT:.0%} of the picture, light x 1.4 and x 0.6, mirrored, by {TURN}°."
    return table("Other views of the pictures", rows, note)


ATTACK = Attack("views", "pictures cropped, brighter, darker, mirrored, turned", run)
