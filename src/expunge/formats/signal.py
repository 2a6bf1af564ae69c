"""Arrays that stand where a picture would: recordings of a modality of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def is_signal(image: Any) -> bool:
    """Whether a row's `image` is an array: the path of a `.npy` file."""
    return isinstance(image, str) and image.endswith(".npy")


def is_array(loaded: Any) -> bool:
    """Whether what was loaded is an array and no picture."""
    return hasattr(loaded, "dtype")


def read_signal(path: str) -> NDArray[Any]:
    """The array in a `.npy` file.

    Raises:
        InputError: No such file, or no array of numbers.
    """
    import numpy as np

    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not an array that can be read ({error}).") from error
    return array
