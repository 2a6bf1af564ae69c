"""Sums over activations on a CUDA device that read them once; imports Triton."""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor
from triton import language as tl

COLUMNS, ROWS, STEPS = 64, 16, 64
"""Columns of a program, rows that it reads at a time, and how many times it reads."""


@triton.jit
def _sum(
    z,
    places,
    parts,
    tau,
    number,
    width,
    stride,
    blocks,
    CHOSEN: tl.constexpr,  # noqa: N803 - Triton's custom
    COLUMNS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    STEPS: tl.constexpr,  # noqa: N803
):
    """Write the four sums of a block of rows at some columns to parts [4, blocks, width]."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.program_id(1)
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    absolute = tl.zeros([ROWS, COLUMNS], tl.float64)
    square = tl.zeros([ROWS, COLUMNS], tl.float64)
    over = tl.zeros([ROWS, COLUMNS], tl.int32)
    inside = column[None, :] < width
    for step in range(STEPS):
        turn = (block * STEPS + step) * ROWS + tl.arange(0, ROWS)
        there = turn < number
        if CHOSEN:
            row = tl.load(places + turn, mask=there, other=0)
        else:
            row = turn.to(tl.int64)
        held = inside & there[:, None]
        value = tl.load(z + row[:, None] * stride + column[None, :], mask=held, other=0.0)
        value = value.to(tl.float32)
        over += (held & (tl.abs(value) > tau)).to(tl.int32)
        exact = value.to(tl.float64)
        total += exact
        absolute += tl.abs(exact)
        square += exact * exact
    place, next_sum = parts + block * width + column, blocks * width
    tl.store(place, tl.sum(total, 0), mask=column < width)
    tl.store(place + next_sum, tl.sum(absolute, 0), mask=column < width)
    tl.store(place + 2 * next_sum, tl.sum(over, 0).to(tl.float64), mask=column < width)
    tl.store(place + 3 * next_sum, tl.sum(square, 0), mask=column < width)


def neuron_sums(z: Tensor, tau: float, places: Tensor | None = None) -> Tensor:
    """Sums over rows of z, |z|, |z| > tau and z^2.

    Args:
        z: Activations [n, width], at most float32, on a CUDA device.
        tau: Threshold, at least 0; compared without rounding.
        places: Which rows count, int64 [m]; None is all.

    Returns:
        float64 [4, width], summed in float64; of the same z always the same.
    """
    width = z.shape[1]
    number = len(z) if places is None else len(places)
    z = z if z.stride(1) == 1 else z.contiguous()
    blocks = -(-number // (ROWS * STEPS))
    parts = torch.empty(4, blocks, width, dtype=torch.float64, device=z.device)
    sizes = {"COLUMNS": COLUMNS, "ROWS": ROWS, "STEPS": STEPS, "CHOSEN": places is not None}
    given = (z, z if places is None else places, parts, _below(tau))
    with torch.cuda.device_of(z):
        _sum[-(-width // COLUMNS), blocks](*given, number, width, z.stride(0), blocks, **sizes)
    return parts.sum(1)


def _below(tau: float) -> float:
    """The greatest float32 up to tau: a float32 is above the one if it is above the other."""
    nearest = np.float32(tau)
    return float(nearest if float(nearest) <= tau else np.nextafter(nearest, np.float32(-np.inf)))
