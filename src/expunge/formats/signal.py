"""What stands where a picture would: sounds, and recordings of a modality of the user's own."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAY, SOUND = ".npy", ".wav"


@dataclass(frozen=True)
class Sound:
    """A sound.

    Attributes:
        samples: One channel, the mean of those recorded, float32 [n] within -1 and 1.
        rate: Samples a second.
    """

    samples: NDArray[Any]
    rate: int


def is_sound(image: Any) -> bool:
    """Whether a row's `image` is the path of a `.wav` file."""
    return isinstance(image, str) and image.endswith(SOUND)


def is_signal(image: Any) -> bool:
    """Whether a row's `image` is no picture, but the path of a `.npy` or a `.wav` file."""
    return isinstance(image, str) and image.endswith((ARRAY, SOUND))


def samples_of(loaded: Any) -> NDArray[Any] | None:
    """The numbers of what was loaded; None of a picture."""
    found: NDArray[Any] | None = loaded.samples if isinstance(loaded, Sound) else loaded
    return found if hasattr(found, "dtype") else None


def read_signal(path: str) -> NDArray[Any] | Sound:
    """The array in a `.npy` file, or the sound in a `.wav` file.

    Raises:
        InputError: No such file, no array of numbers, no sound that can be read.
    """
    try:
        return _sound(path) if is_sound(path) else _array(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError, EOFError) as error:
        kind = "a sound" if is_sound(path) else "an array"
        raise InputError(f"{path}: not {kind} that can be read ({error}).") from error


def _array(path: str) -> NDArray[Any]:
    import numpy as np

    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array


def _sound(path: str) -> Sound:
    import numpy as np
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that hold no sound
        rate, samples = wavfile.read(path)
    if not samples.size:
        raise ValueError("it is empty")
    middle = 128 if samples.dtype == np.uint8 else 0
    whole = 1.0 if samples.dtype.kind == "f" else 2.0 ** (8 * samples.dtype.itemsize - 1)
    scaled = (samples.astype(np.float32) - middle) / np.float32(whole)
    return Sound(scaled if scaled.ndim == 1 else scaled.mean(1), int(rate))
