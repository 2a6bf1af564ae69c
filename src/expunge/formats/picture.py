"""Pictures up to their header: whether there is one, and how large it claims to be."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from expunge.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def opened(image: Any, name: str, limit: int) -> Image:
    """An image with its header read and its size checked, and nothing decoded.

    Args:
        image: A path, encoded bytes, or a PIL image (returned as it is).
        name: What an error message calls it.
        limit: The most pixels that are accepted.

    Raises:
        InputError: No such file, not a picture, or too large.
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
            raise InputError(f"{name}: more than {limit:,} pixels; make it smaller.") from None
        except (OSError, SyntaxError, ValueError) as error:
            reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise InputError(f"{name}: not an image that can be read{reason}.") from error
    width, height = found.size
    if width * height > limit:
        raise InputError(
            f"{name}: {width} x {height} pixels, at most {limit:,} are read; make it smaller."
        )
    return found
