"""Pictures: the header, before anything is decoded; the pixels; and what tells one from another."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from typing import TYPE_CHECKING, Any

from expunge.errors import InputError
from expunge.formats.signal import is_signal, read_signal, samples_of

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000


def opened(image: Any, name: str) -> Image:
    """An image with its header read and its size checked, and nothing decoded.

    Args:
        image: A path, encoded bytes, or a PIL image (returned as it is).
        name: What an error message calls it.

    Raises:
        InputError: No such file, not a picture, or more than `MAX_PIXELS` pixels.
    """
    from PIL import Image as images
    from PIL import UnidentifiedImageError

    found: Image = image
    if not isinstance(image, images.Image):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", images.DecompressionBombWarning)
                found = images.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        except FileNotFoundError:
            raise InputError(f"{name}: no such file.") from None
        except images.DecompressionBombError:
            raise InputError(f"{name}: more than {MAX_PIXELS:,} pixels; make it smaller.") from None
        except (OSError, SyntaxError, ValueError) as error:
            reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise InputError(f"{name}: not an image that can be read{reason}.") from error
    width, height = found.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels, at most {MAX_PIXELS:,} are read; make it smaller."
        )
    return found


def load_image(image: str | os.PathLike[str] | bytes | Image) -> Any:
    """The picture as RGB, upright by EXIF; of a `.npy` or `.wav` file what it holds.

    Args:
        image: A path, encoded bytes, or a PIL image.

    Raises:
        InputError: No such file, not a picture, cut short, or more than `MAX_PIXELS` pixels, which
            is seen in the header before anything is decoded.
    """
    from PIL import Image as images
    from PIL import ImageOps

    if isinstance(image, str) and is_signal(image):
        return read_signal(image)
    name = f"an image of {len(image)} bytes" if isinstance(image, bytes) else f"image {image}"
    if isinstance(image, images.Image):
        name = f"a PIL image ({image.mode})"
    picture = opened(image, name)
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name}: damaged or cut short ({error}).") from error
    finally:
        if picture is not image:
            picture.close()


def cropped(image: Image, left: float, top: float, right: float, bottom: float) -> Image:
    """Without the given shares of its width and height at its sides, at the old size."""
    from PIL.Image import Resampling

    wide, tall = image.size
    box = (wide * left, tall * top, wide - wide * right, tall - tall * bottom)
    return image.resize(image.size, Resampling.BICUBIC, box=box)


def turned(image: Image, degrees: float) -> Image:
    """Turned against the clock; the corners take the colour of the upper left pixel."""
    from PIL.Image import Resampling

    return image.rotate(degrees, Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))


def pixel_digest(rgb: Any) -> str:
    """Hash of the size and the RGB values of a picture, or of an array or a sound."""
    array = samples_of(rgb)
    if array is not None:
        name = f"{array.shape} {array.dtype}:"
        return hashlib.sha256(name.encode() + array.tobytes()).hexdigest()
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()
