"""What a precision makes of a linear layer: one record each, in the precision's own file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from mgpt_edge.runtime.catalogue import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics

    Linear = Callable[[Tensor, float], nn.Module]
    """(weight [out, in], largest magnitude of what the layer is given) -> what it computes, in PyTorch."""
    Rescale = Callable[[Checkpoint, Statistics, str], tuple[Checkpoint, Statistics | None]]
    """(checkpoint, statistics, engine) -> the weights that are rounded, and what scales of activations come from."""

Activations = Literal["bytes", "halves"]
"""What the products of a lowering multiply weights with: bytes with a scale a token, or float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How weights are stored, and what that means for everything beside them.

    Args:
        name: on the command line and in manifests.
        order: place in lists.
        bits: of a weight.
        linear: what a linear computes, by the activations of its product; where nothing stands its floats are kept.
        statistics: whether nobody can export it without knowing what the linears are given.
        rescale: what is done by statistics before weights are rounded; None equalises them (`equalise`).
        least_sm: the first GPUs that multiply in it, by their compute capability without the point.
        image_head: precision of the head over the codes beside it; None is its own.
        of: (checkpoint, weight's name) -> the precision of one weight, where not all have one.
        emit: lowering -> how it writes a linear, for lowerings that do not know the precision by themselves; None where
            `of` leads to precisions that they know.
    """

    name: str
    order: int
    bits: int
    linear: Mapping[Activations, Linear] = field(default_factory=dict)
    statistics: bool = False
    rescale: Rescale | None = None
    least_sm: int = 0
    image_head: str | None = None
    of: Callable[[Checkpoint, str], str] | None = None
    emit: Mapping[str, Any] = field(default_factory=dict)


@cache
def precisions() -> dict[str, Precision]:
    """Returns every precision by its name."""
    return catalogue(sys.modules[__package__], Precision)


def keep_statistics(checkpoint: Checkpoint, statistics: Statistics, _: str) -> tuple[Checkpoint, Statistics | None]:
    """Leaves the weights as they are; the scales of activations are taken from the statistics."""
    return checkpoint, statistics
