"""Multiply matrices in half the bits where a CPU is made for it and the result is judged anyway.

So the default method sees what is to be forgotten, what enters the sites and answers about almost
nothing. What retain subjects and texts lose is asked in all bits, and so is the model written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

LARGE = 2**25
"""Weights from which on it pays; those of smaller models are cast in the time that it saves."""
UNITS = ("avx512_bf16", "amx_bf16")


@contextlib.contextmanager
def half_products(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within the block, a large float32 model on a CPU with bfloat16 units multiplies in bfloat16.

    What the layers hand on, norms and sums stay in float32. Everywhere else, and
    where it is not wanted, nothing changes.
    """
    if not wanted or not pays(model):
        yield
        return
    with torch.autocast("cpu", torch.bfloat16):
        yield


def pays(model: Any) -> bool:
    """Whether `half_products` changes anything for a model."""
    weights = list(model.parameters())
    if any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
        return False
    if getattr(model, "hf_device_map", None) or sum(w.numel() for w in weights) < LARGE:
        return False
    told = getattr(torch.cpu, "get_capabilities", None)  # torch before 2.10 cannot tell
    return told is not None and any(told().get(unit) for unit in UNITS)
