"""Numbers on a grid: nearest, exact in the file, small."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.grid import COARSE, FINE, FINEST, gridded, packed, unpacked


def drawn(n, width, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((n, width))).astype(np.float32)


@pytest.mark.parametrize("steps", [COARSE, FINE, FINEST])
def test_each_number_is_the_nearest_multiple_of_its_row_step(steps):
    """Against a loop over the whole numbers in float64, steps as torch rounds to bfloat16."""
    rows = drawn(3, 20)
    for row, found in zip(rows, gridded(rows, steps), strict=True):
        step = float(torch.tensor(np.abs(row).max() / np.float32(steps)).bfloat16())
        grid = [i * step for i in range(-steps, steps + 1)]
        for x, got in zip(row.tolist(), found.tolist(), strict=True):
            assert abs(got - x) == pytest.approx(min(abs(g - x) for g in grid), abs=1e-6)
            assert got in grid


@given(
    st.sampled_from([COARSE, FINE, FINEST]),
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([1e-30, 1e-8, 1.0, 3e4, 1e30]),
    st.integers(0, 10**6),
)
def test_what_is_read_is_what_was_written_bit_for_bit(steps, n, width, scale, seed):
    rows = drawn(n, width, seed, scale)
    rows[0, width // 2] = 0.0
    rows[n // 2] *= seed % 2  # a row of nothing now and then
    once = gridded(rows, steps)
    assert once.dtype == np.float32 and np.array_equal(gridded(once, steps), once)
    assert np.array_equal(unpacked(*packed(once)), once)


def test_a_file_takes_little_more_than_the_entropy_of_its_codes():
    rows = gridded(drawn(8, 4096), COARSE)
    data, step = packed(rows)
    codes = np.rint(rows / step[:, None])
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = -sum(p * math.log2(p) for p in shares) / 8
    assert data.dtype == np.uint8 and step.dtype == np.float32
    assert entropy * codes.size <= len(data) < 1.05 * entropy * codes.size


def test_what_is_on_no_grid_is_left_as_it_is():
    assert packed(drawn(2, 9)) is None
    assert packed(gridded(drawn(2, 9), FINE).astype(np.float16)) is None
    one = np.ones(4, np.float32)
    assert packed(one) is None and packed(one[:0, None]) is None


def test_bytes_of_something_else_are_refused():
    with pytest.raises(ValueError, match="cannot be read"):
        unpacked(np.arange(9, dtype=np.uint8), np.ones(3, np.float32))
    data, _ = packed(gridded(drawn(2, 8), FINE))
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"16 numbers cannot be {number} rows"):
            unpacked(data, np.ones(number, np.float32))
