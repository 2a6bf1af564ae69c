"""Entry checks shared by the metrics: what is measured must be there and be a number."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import InputError


def vector(name: str, values: ArrayLike, *, finite: bool = True) -> NDArray[np.float64]:
    """Turn `values` into a non-empty float64 vector.

    Args:
        name: What the values are, for the error line.
        values: A sequence of numbers or booleans, shape `(n,)`, n >= 1.
        finite: Whether infinities are refused; NaN always is.

    Returns:
        The values, float64 `(n,)`.

    Raises:
        InputError: Empty, not one-dimensional, NaN, or infinite where that is refused.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(
            f"{name}: found shape {array.shape}, expected one or more numbers in one dimension; "
            "pass one value per row"
        )
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        raise InputError(
            f"{name}: found {array[bad][0]} at position {int(np.flatnonzero(bad)[0])}, expected "
            f"{'finite numbers' if finite else 'numbers'}; drop or repair that row"
        )
    return array


def same_length(
    name_a: str, a: ArrayLike, name_b: str, b: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn two paired sequences into finite float64 vectors of one length.

    Raises:
        InputError: As `vector`, or the lengths differ.
    """
    first, second = vector(name_a, a), vector(name_b, b)
    if len(first) != len(second):
        raise InputError(
            f"found {len(first)} {name_a} and {len(second)} {name_b}, expected as many of each; "
            "pair them row by row"
        )
    return first, second


def log_probabilities(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Turn `values` into a vector of natural log-probabilities; minus infinity is allowed.

    Raises:
        InputError: As `vector`, or a value lies above 0 by more than rounding.
    """
    array = vector(name, values, finite=False)
    if array.max() > 1e-4:
        raise InputError(
            f"{name}: found {array.max():g}, expected log-probabilities (at most 0); "
            "negate it if it is a negative log-likelihood"
        )
    return array
