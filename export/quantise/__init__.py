"""Quantisation schemes, a file each: how weights are packed, and what the packed form computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mgpt_edge.export.quantise.int4 import Int4Linear
from mgpt_edge.export.quantise.int8 import Int8Linear

if TYPE_CHECKING:
    from torch import Tensor

LINEARS = {"int8": Int8Linear, "int4": Int4Linear}


def quantised_linear(weight: Tensor, precision: str) -> nn.Module:
    """A linear layer that computes what `precision` computes once exported; weight [out, in]."""
    if precision in LINEARS:
        return LINEARS[precision](weight)
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    return linear
