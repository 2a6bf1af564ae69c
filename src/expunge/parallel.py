"""Several processes on one data set, as torchrun starts them; alone, everything here does nothing.

Each process runs a part of the batches, the sums are added up, and every process then decides the
same from the same sums. The first one, the leader, does all the writing and speaking.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
from torch import distributed

PATIENCE = datetime.timedelta(hours=12)
"""How long others wait for the leader, which may hash or write a large checkpoint meanwhile."""


def launched() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within the block this process belongs to the group that torchrun started, if it did."""
    if launched() == 1 or distributed.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def part() -> tuple[int, int]:
    """This process's number and how many there are, (0, 1) when alone."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def leads() -> bool:
    """Whether this process writes and speaks."""
    return part()[0] == 0


def agreed(truth: bool) -> bool:
    """What the leader says; every process has to ask."""
    if part()[1] == 1:
        return truth
    said = torch.tensor(int(truth))
    distributed.broadcast(said, 0)
    return bool(said)


def least(number: int) -> int:
    """The least number that any process has; every process has to ask."""
    if part()[1] == 1:
        return number
    said = torch.tensor(number)
    distributed.all_reduce(said, distributed.ReduceOp.MIN)
    return int(said)
