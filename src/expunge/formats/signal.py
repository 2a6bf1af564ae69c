"""Arrays that stand where a picture would: recordings of a modality of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.errors import InputError


def is_signal(image: Any) -> bool:
    """Whether a row's `image` is an array: the path of a `.npy` file."""
    return isinstance(image, str) and image.endswith(".npy")


def read_signal(path: str) -> NDArray[Any]:
    """The array in a `.npy` file.

    Raises:
        InputError: No such file, or no array of numbers.
    """
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not an array that can be read ({error}).") from error
    return array
