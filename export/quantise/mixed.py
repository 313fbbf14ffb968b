"""Two precisions in one bundle: 4 bits, and 8 for the linears that lose most by 4."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from mgpt_edge.export.equalise import equalise
from mgpt_edge.export.quantise.precision import Precision
from mgpt_edge.export.statistics import INPUTS

if TYPE_CHECKING:
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics

WIDE_SHARE = 0.25
"""Of the weights keep 8 bits."""


def mix(checkpoint: Checkpoint, statistics: Statistics) -> Checkpoint:
    """The checkpoint with 8 bits where they help most for each byte, until `WIDE_SHARE` of the weights have them."""
    weights = {name: _readers(name) for name in statistics.harm}
    sizes = {name: sum(math.prod(checkpoint.shape(w)) for w in readers) for name, readers in weights.items()}
    budget, wide = WIDE_SHARE * sum(sizes.values()), set()
    for name in sorted(sizes, key=lambda name: -float(statistics.harm[name]) / sizes[name]):
        if sizes[name] <= budget:
            budget -= sizes[name]
            wide.update(weights[name])
    return replace(checkpoint, wide=frozenset(wide))


def _readers(name: str) -> tuple[str, ...]:
    """The weights that read an input."""
    if name == "head":
        return ("lm_head.weight",)
    layer, kind = name.split(".")
    return tuple(f"model.layers.{layer}.{module}.weight" for module in INPUTS[kind])


def _rescale(checkpoint: Checkpoint, statistics: Statistics, engine: str) -> tuple[Checkpoint, None]:
    return mix(equalise(checkpoint, statistics, "int4", engine), statistics), None


MIXED = Precision(
    name="mixed",
    order=4,
    bits=4,
    statistics=True,
    rescale=_rescale,
    of=lambda checkpoint, weight: "int8" if weight in checkpoint.wide else "int4",
    emit={"native": None},
)
