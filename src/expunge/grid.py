"""Numbers on a grid: how a plan holds its factors in few bytes.

Every row of a matrix is whole multiples of a step of its own, `-steps` to `steps` of them, so that
a file holds a step a row and small whole numbers, which a Huffman code brings near to their
entropy. The steps have eight binary digits: multiples of them are exact in float32, and what is
read is bit for bit what was written.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

COARSE = 7
FINE = 31
FINEST = 127
GRIDS = {"A": (FINE, True), "B": (COARSE, False), "gate": (FINEST, False), "down": (FINE, True)}
"""Matrix of a plan -> its grid, and whether columns have the steps instead of rows."""
CODES, STEPS = ".codes", ".steps"
"""What follows the name of a matrix in a plan file, where it is held as codes and steps."""

Floats = NDArray[np.float32]


def gridded(rows: Floats, steps: int) -> Floats:
    """The nearest on a grid of `steps` steps either side of 0.

    Args:
        rows: Numbers [n, width]; off by half a step at most, and a 500th of what is largest in
            their row.
        steps: `COARSE`, `FINE` or `FINEST`.
    """
    codes, step = _codes(rows, steps)
    return codes * step


def packed(rows: Floats) -> tuple[NDArray[np.uint8], Floats] | None:
    """Bytes [size] and steps [n] of rows on a grid, None of others."""
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.size:
        return None
    for steps in (COARSE, FINE, FINEST):
        codes, step = _codes(rows, steps)
        if np.array_equal(codes * step, rows):
            coder = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)  # nothing repeats
            data = coder.compress(codes.astype(np.int8).tobytes()) + coder.flush()
            return np.frombuffer(data, dtype=np.uint8), step[:, 0]
    return None


def unpacked(data: NDArray[np.uint8], step: Floats) -> Floats:
    """Rows [n, width].

    Raises:
        ValueError: Bytes that `packed` did not write.
    """
    try:
        codes = np.frombuffer(zlib.decompress(data.tobytes()), dtype=np.int8)
    except zlib.error as error:
        raise ValueError(f"its numbers cannot be read: {error}") from error
    if not codes.size or not len(step) or codes.size % len(step):
        raise ValueError(f"{codes.size} numbers cannot be {len(step)} rows")
    return codes.reshape(len(step), -1).astype(np.float32) * step[:, None]


def turned(name: str, matrix: Floats) -> Floats:
    """A matrix of a plan as the rows that have a step each, and such rows as the matrix.

    Args:
        name: One of `GRIDS`, the key of its site before it or not.
        matrix: [n, m]; contiguous afterwards.
    """
    return np.ascontiguousarray(matrix.T if GRIDS[name.rsplit("/", 1)[-1]][1] else matrix)


def _codes(rows: Floats, steps: int) -> tuple[Floats, Floats]:
    """Whole numbers [n, width] and steps [n, 1]."""
    digits, exponent = np.frexp(np.abs(rows).max(1, keepdims=True) / steps)
    step = np.ldexp(np.rint(digits * 256) / 256, exponent).astype(np.float32)
    codes = np.rint(rows / np.where(step > 0, step, np.float32(1)))
    return np.clip(codes, -steps, steps), step
