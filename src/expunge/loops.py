"""Sums over activations on a CPU that read them once; imports Numba."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

BLOCK = 128
"""Rows that are summed by themselves, so that sums do not depend on the number of threads."""


@numba.njit(nogil=True)
def _sum(
    z: Any, places: Any, chosen: bool, first: int, last: int, tau: float, out: Any
) -> None:  # pragma: no cover - compiled
    for turn in range(first, last, 2):  # two rows at once: half the traffic of the sums
        odd = turn + 1 == last
        row, other = (turn, turn if odd else turn + 1)
        if chosen:
            row, other = places[row], places[other]
        twice = 0.0 if odd else 1.0
        for column in range(z.shape[1]):
            value = np.float64(z[row, column])
            second = 0.0 if odd else np.float64(z[other, column])
            size, larger = abs(value), abs(second)
            out[0, column] += value + second
            out[1, column] += size + larger
            out[2, column] += (1.0 if size > tau else 0.0) + (twice if larger > tau else 0.0)
            out[3, column] += value * value + second * second


def neuron_sums(z: Tensor, tau: float, places: Tensor | None = None) -> Tensor:
    """Sums over rows of z, |z|, |z| > tau and z^2, on as many threads as torch has.

    Args:
        z: Activations [n, width], any float dtype, on the CPU.
        tau: Threshold, compared in float64.
        places: Which rows count, int64 [m]; None is all.

    Returns:
        float64 [4, width], summed in float64; of the same z always the same.
    """
    number = len(z) if places is None else len(places)
    whole = z if z.dtype in (torch.float32, torch.float64) else z.float()
    rows = whole.detach().contiguous().numpy()
    index = np.zeros(0, np.int64) if places is None else places.numpy()
    starts = range(0, number, BLOCK)
    parts = np.zeros((len(starts), 4, z.shape[1]))

    turn = count()

    def work() -> None:
        while (i := next(turn)) < len(starts):
            last = min(starts[i] + BLOCK, number)
            _sum(rows, index, places is not None, starts[i], last, tau, parts[i])

    threads = torch.get_num_threads()
    others = [_pool(threads).submit(work) for _ in range(1, threads)]
    work()
    for each in others:
        each.result()
    return torch.from_numpy(parts).sum(0)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
