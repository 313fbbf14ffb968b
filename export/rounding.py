"""What an engine's linear layers compute in a precision, in PyTorch: for golden logits, rescaling and measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from mgpt_edge.export.lower.lowering import lowering_of
from mgpt_edge.export.quantise import int4, weight_only
from mgpt_edge.export.quantise.precision import precisions

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint


def quantised_linear(weight: Tensor, precision: str, engine: str, largest: float | None = None) -> nn.Module:
    """Returns a linear layer that computes what `engine` computes in `precision`.

    Args:
        weight: [out, in].
        precision: of the engine's.
        engine: by its name.
        largest: magnitude of what the layer is given; precisions with scales fixed at export need it.
    """
    make = precisions()[precision].linear.get(lowering_of(engine).activations)
    if make is not None:
        return make(weight, 0.0 if largest is None else largest)
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    return linear


def rounded(weight: Tensor, precision: str, engine: str) -> Tensor:
    """Returns the weight [out, in] that is left of one in `precision`."""
    linear = quantised_linear(weight, precision, engine, largest=1.0)
    return linear.weight if isinstance(linear, nn.Linear) else linear.rounded


def embedded(rows: Tensor, precision: str, engine: str) -> Tensor:
    """Returns rows of the embedding [n, hidden] as an engine keeps them, float32."""
    return lowering_of(engine).embedded(rows, precisions()[precision])


def image_head_precision(precision: str, engine: str) -> str:
    """Returns what the head over the codes has in a bundle of `precision`.

    It has 8 bits beside fewer, and in place of floats of 8: it is a two-hundredth of a model's weights, and what its
    rounding loses is in the logits at once. An engine with one head for codes and text has no choice.
    """
    return precision if lowering_of(engine).one_head else precisions()[precision].image_head or precision


def precision_of(checkpoint: Checkpoint, weight: str, precision: str) -> str:
    """Returns what the linear with the weight of this name has in a bundle of `precision`."""
    of = precisions()[precision].of
    return precision if of is None else of(checkpoint, weight)


def blocks_of(engine: str) -> ModuleType:
    """Returns the module that defines an engine's blocks of 4-bit weights."""
    return int4 if lowering_of(engine).activations == "bytes" else weight_only
