"""Weights rounded to few bits, which can bring forgotten answers back (arXiv 2410.16454)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from expunge.attacks.base import (
    Attack,
    Candidate,
    Context,
    Result,
    Scorer,
    asking,
    compared,
    table,
)
from expunge.data import Example
from expunge.errors import InputError

GROUP = 32
SCHEMES = {
    "int8, a scale per output row": ("int8", None),
    f"int4, a scale per {GROUP} inputs": ("int4", GROUP),
}


def quantized(model: Any, dtype: str, group: int | None) -> Any:
    """A copy whose linear layers hold their weights as symmetric integers (torchao, weight-only).

    Activations stay in the model's dtype. The output embedding stays as it is, and so does a layer
    whose inputs cannot be divided into groups.

    Args:
        model: Unchanged afterwards.
        dtype: `int8` or `int4`.
        group: Inputs per scale, or None for one scale per output row.

    Raises:
        InputError: torchao is not installed.
    """
    try:
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerAxis, PerGroup
    except ImportError as error:
        raise InputError(
            "the quantize attack needs torchao, which is not installed; pip install"
            " 'expunge[quantize]'"
        ) from error
    twin = copy.deepcopy(model)
    head = twin.get_output_embeddings()

    def chosen(module: nn.Module, _: str) -> bool:
        fits = isinstance(module, nn.Linear) and module.in_features % (group or 1) == 0
        return fits and module is not head

    granularity = PerAxis(0) if group is None else PerGroup(group)
    scheme = IntxWeightOnlyConfig(weight_dtype=getattr(torch, dtype), granularity=granularity)
    quantize_(twin, scheme, filter_fn=chosen)
    return twin


def rounded(context: Context, dtype: str, group: int | None) -> Scorer:
    """A scorer that asks quantized copies; each is made once."""
    made: dict[str, Candidate] = {}
    score = asking(context)

    def ask_rounded(
        candidate: Candidate, examples: Sequence[Example], condition: str
    ) -> list[float]:
        if candidate.name not in made:
            twin = quantized(candidate.model, dtype, group)
            made[candidate.name] = replace(candidate, model=twin)
        return score(made[candidate.name], examples, condition)

    return ask_rounded


def run(context: Context) -> Result:
    """Ask every model again with its weights in int8 and in int4."""
    variants = {"as saved": asking(context)}
    variants |= {name: rounded(context, *scheme) for name, scheme in SCHEMES.items()}
    rows = compared(context, variants, sets=("forget", "test", "retain"))
    note = (
        "torchao, weight-only, symmetric: " + "; ".join(SCHEMES) + ". Linear layers of all towers;"
        " the output embedding stays as it is."
    )
    return table("Quantization", rows, note)


ATTACK = Attack("quantize", "weights rounded to int8 and int4 (torchao, weight-only)", run)
