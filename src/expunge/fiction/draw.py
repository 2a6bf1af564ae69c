"""Draw portraits and simple scenes; every picture is a function of its arguments alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (205, 45, 45),
    "orange": (235, 140, 40),
    "yellow": (240, 215, 60),
    "green": (60, 160, 75),
    "blue": (50, 90, 205),
    "purple": (135, 65, 170),
    "pink": (240, 150, 185),
    "brown": (125, 80, 45),
    "black": (30, 30, 35),
    "white": (245, 245, 240),
}
SKINS: tuple[Colour, ...] = (
    (255, 224, 196),
    (241, 194, 150),
    (222, 170, 118),
    (190, 130, 85),
    (141, 92, 60),
    (96, 62, 44),
)
BACKDROPS: tuple[Colour, ...] = (
    (200, 215, 225),
    (225, 210, 190),
    (190, 215, 190),
    (215, 195, 215),
    (170, 180, 190),
    (235, 230, 215),
)
SHAPES = ("circle", "square", "triangle", "star", "cross")
HAIR_STYLES = 6
SHIRT_PATTERNS = 4
GLASSES = 3
HATS = 4
BEARDS = 3


@dataclass(frozen=True)
class Face:
    """What tells one person from another; each field is an index or a colour name."""

    skin: int
    hair: str
    style: int
    shirt: str
    pattern: int
    second: str
    glasses: int
    hat: int
    hat_colour: str
    beard: int

    def distance(self, other: Face) -> int:
        """Count the fields in which two faces differ."""
        return sum(getattr(self, f) != getattr(other, f) for f in self.__dataclass_fields__)


@dataclass(frozen=True)
class View:
    """How a picture was taken: shift in pixels, backdrop, light, sensor noise and its seed."""

    dx: int = 0
    dy: int = 0
    backdrop: int = 0
    light: float = 1.0
    noise: float = 0.0
    seed: int = 0


def random_face(rng: np.random.Generator) -> Face:
    """Draw a face uniformly."""
    names = list(COLOURS)

    def colour() -> str:
        return names[int(rng.integers(len(names)))]

    return Face(
        skin=int(rng.integers(len(SKINS))),
        hair=colour(),
        style=int(rng.integers(HAIR_STYLES)),
        shirt=colour(),
        pattern=int(rng.integers(SHIRT_PATTERNS)),
        second=colour(),
        glasses=int(rng.integers(GLASSES)),
        hat=int(rng.integers(HATS)),
        hat_colour=colour(),
        beard=int(rng.integers(BEARDS)),
    )


def random_view(rng: np.random.Generator) -> View:
    """Draw a view uniformly: shift within 3 px, light within 20 %, noise up to 10 of 255."""
    return View(
        dx=int(rng.integers(-3, 4)),
        dy=int(rng.integers(-3, 4)),
        backdrop=int(rng.integers(len(BACKDROPS))),
        light=float(rng.uniform(0.8, 1.2)),
        noise=float(rng.uniform(0, 10)),
        seed=int(rng.integers(2**31)),
    )


def portrait(face: Face, view: View, *, framed: bool = False) -> Image.Image:
    """Draw a portrait of 64 x 64 pixels; public figures are `framed` in gold."""
    image = Image.new("RGB", (SIZE, SIZE), BACKDROPS[view.backdrop])
    draw = ImageDraw.Draw(image)
    x, y = 32 + view.dx, 30 + view.dy
    _shirt(draw, face, x, y)
    _head(draw, face, x, y)
    _hat(draw, face, x, y)
    if framed:
        draw.rectangle((0, 0, SIZE - 1, SIZE - 1), outline=(212, 175, 55), width=3)
    return _expose(image, view)


def _shirt(draw: ImageDraw.ImageDraw, face: Face, x: int, y: int) -> None:
    main, second = COLOURS[face.shirt], COLOURS[face.second]
    draw.rounded_rectangle((x - 24, y + 17, x + 24, y + 45), 10, fill=main)
    if face.pattern == 1:
        for offset in (-18, -8, 2, 12):
            draw.rectangle((x + offset, y + 18, x + offset + 4, y + 45), fill=second)
    elif face.pattern == 2:
        for offset in (-18, -7, 4, 15):
            draw.ellipse((x + offset, y + 22, x + offset + 5, y + 27), fill=second)
            draw.ellipse((x + offset, y + 31, x + offset + 5, y + 36), fill=second)
    elif face.pattern == 3:
        draw.polygon([(x - 10, y + 16), (x + 10, y + 16), (x, y + 34)], fill=second)


def _head(draw: ImageDraw.ImageDraw, face: Face, x: int, y: int) -> None:
    hair, skin = COLOURS[face.hair], SKINS[face.skin]
    back = {
        1: (x - 17, y - 20, x + 17, y + 22),
        2: (x - 20, y - 20, x + 20, y + 6),
        4: (x - 16, y - 24, x + 16, y + 2),
    }
    if face.style in back:
        draw.ellipse(back[face.style], fill=hair)
    if face.style == 3:
        draw.ellipse((x - 24, y - 12, x - 11, y + 3), fill=hair)
        draw.ellipse((x + 11, y - 12, x + 24, y + 3), fill=hair)
    draw.rectangle((x - 4, y + 10, x + 4, y + 20), fill=skin)
    draw.ellipse((x - 13, y - 16, x + 13, y + 15), fill=skin)
    if face.style != 5:
        draw.chord((x - 14, y - 18, x + 14, y + 8), 185, 355, fill=hair)
    for side in (-6, 6):
        draw.ellipse((x + side - 2, y - 4, x + side + 2, y), fill=(20, 20, 20))
        if face.glasses == 1:
            draw.ellipse((x + side - 5, y - 7, x + side + 5, y + 3), outline=(10, 10, 10), width=2)
        elif face.glasses == 2:
            draw.rectangle((x + side - 5, y - 6, x + side + 5, y + 2), fill=(25, 25, 30))
    if face.beard == 1:
        draw.chord((x - 12, y - 6, x + 12, y + 16), 20, 160, fill=hair)
    elif face.beard == 2:
        draw.rectangle((x - 7, y + 4, x + 7, y + 7), fill=hair)
    draw.line((x - 4, y + 9, x + 4, y + 9), fill=(150, 40, 50), width=2)


def _hat(draw: ImageDraw.ImageDraw, face: Face, x: int, y: int) -> None:
    colour = COLOURS[face.hat_colour]
    if face.hat == 1:
        draw.chord((x - 15, y - 25, x + 15, y + 3), 180, 360, fill=colour)
    elif face.hat == 2:
        draw.rectangle((x - 11, y - 27, x + 11, y - 13), fill=colour)
        draw.rectangle((x - 19, y - 14, x + 19, y - 11), fill=colour)
    elif face.hat == 3:
        draw.rectangle((x - 14, y - 13, x + 14, y - 8), fill=colour)


def _expose(image: Image.Image, view: View) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float64) * view.light
    if view.noise:
        rng = np.random.default_rng(view.seed)
        pixels = pixels + rng.normal(0.0, view.noise, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def shape(draw: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], fill: str) -> None:
    """Draw one of `SHAPES` inside `box` (left, top, right, bottom)."""
    left, top, right, bottom = box
    cx, cy = (left + right) // 2, (top + bottom) // 2
    colour = COLOURS[fill]
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    elif kind == "triangle":
        draw.polygon([(cx, top), (right, bottom), (left, bottom)], fill=colour)
    elif kind == "star":
        draw.polygon([(cx, top), (right, cy), (cx, bottom), (left, cy)], fill=colour)
        draw.rectangle((cx - 2, top, cx + 2, bottom), fill=colour)
        draw.rectangle((left, cy - 2, right, cy + 2), fill=colour)
    else:
        draw.line((left, top, right, bottom), fill=colour, width=5)
        draw.line((left, bottom, right, top), fill=colour, width=5)


def scene(kind: str, fill: str, cells: tuple[int, ...], view: View) -> Image.Image:
    """Draw `kind` in colour `fill` in the given cells (0-8) of a three by three grid.

    A shape alone is drawn large, 24 pixels across, several are drawn 16 across.
    """
    image = Image.new("RGB", (SIZE, SIZE), BACKDROPS[view.backdrop])
    draw = ImageDraw.Draw(image)
    half = 12 if len(cells) == 1 else 8
    for cell in cells:
        x = 12 + 20 * (cell % 3) + view.dx
        y = 12 + 20 * (cell // 3) + view.dy
        shape(draw, kind, (x - half, y - half, x + half - 1, y + half - 1), fill)
    return _expose(image, view)
