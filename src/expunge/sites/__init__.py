"""Where the neurons of a model are.

A site is found by its down projection: the last linear map of an MLP (or attention) block. Neuron
*i* is input feature *i* of that map, whatever comes before it. Three steps find them: the towers
(what transformers calls encoders and decoder, or a small table where it cannot tell), the blocks
(known names, confirmed by shapes), and the numbers (the layer's own index where a tower has one
block per layer, else the position in the tower).
"""

from expunge.sites.blocks import Site
from expunge.sites.families import FAMILIES
from expunge.sites.find import describe, find_sites, inspect_config
from expunge.sites.inner import (
    Inner,
    explains,
    grow_bias,
    hidden,
    inner_bias,
    inner_of,
    inner_weight,
    layer_of,
    passed_on,
    takes_bias,
)
from expunge.sites.towers import towers
from expunge.sites.values import Values, grow_values, takes_values, value_bias, values_of
from expunge.sites.weights import down_module, down_weight

__all__ = [
    "FAMILIES",
    "Inner",
    "Site",
    "Values",
    "describe",
    "down_module",
    "down_weight",
    "explains",
    "find_sites",
    "grow_bias",
    "grow_values",
    "hidden",
    "inner_bias",
    "inner_of",
    "inner_weight",
    "inspect_config",
    "layer_of",
    "passed_on",
    "takes_bias",
    "takes_values",
    "towers",
    "value_bias",
    "values_of",
]
