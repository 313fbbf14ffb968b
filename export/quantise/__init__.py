"""Quantisation schemes, a file each: how weights are packed, and what the packed form computes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from mgpt_edge.export.quantise import int4, weight_only
from mgpt_edge.export.quantise.fp8 import Fp8Linear
from mgpt_edge.export.quantise.int4 import Int4Linear
from mgpt_edge.export.quantise.int8 import Int8Linear
from mgpt_edge.export.quantise.nvfp4 import Nvfp4Linear
from mgpt_edge.export.quantise.w8a8 import W8A8Linear
from mgpt_edge.export.quantise.weight_only import WeightOnlyLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint

    Scheme = Callable[[Tensor], nn.Module]
    """Weight [out, in] -> a module; its `rounded` is the weight that is left of it."""


def _int4(weight: Tensor) -> nn.Module:
    return Int4Linear(weight) if int4.fits(weight.shape[1]) else Int8Linear(weight)


_CPU: dict[str, Scheme] = {"int8": Int8Linear, "int4": _int4}
_GPU: dict[str, Scheme] = {precision: partial(WeightOnlyLinear, precision=precision) for precision in ("int8", "int4")}
SCHEMES = {"native": _CPU, "cpu": _CPU, **dict.fromkeys(("cuda", "rtx", "tensorrt", "tensorrt10"), _GPU)}
"""What each engine makes of a linear layer, by precision; of any other its floats are kept."""


BLOCKS = {engine: int4 if schemes is _CPU else weight_only for engine, schemes in SCHEMES.items()}
"""Where an engine's blocks of 4-bit weights are defined."""

_CALIBRATED = {"w8a8": W8A8Linear, "fp8": Fp8Linear, "nvfp4": Nvfp4Linear}
CALIBRATED = frozenset(_CALIBRATED)
"""Precisions whose activations have scales that are fixed at export: they need statistics."""


def quantised_linear(weight: Tensor, precision: str, engine: str, largest: float | None = None) -> nn.Module:
    """A linear layer that computes what `engine` computes in `precision`.

    Args:
        weight: [out, in].
        precision: of the engine's.
        engine: of `SCHEMES`.
        largest: magnitude of what the layer is given; precisions of `CALIBRATED` need it.
    """
    if precision in CALIBRATED:
        return _CALIBRATED[precision](weight, largest)
    if precision in SCHEMES[engine]:
        return SCHEMES[engine][precision](weight)
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight.float(), requires_grad=False)
    return linear


def embedded(rows: Tensor, precision: str, engine: str) -> Tensor:
    """Rows of the embedding [n, hidden] as an engine keeps them, float32."""
    if engine == "native":
        return Int8Linear(rows).rounded if precision in {"int4", "mixed"} else rows.bfloat16().float()
    return rows.float()


def image_head_precision(precision: str, engine: str) -> str:
    """What the head over the codes has in a bundle of `precision`.

    8 bits beside fewer, and in place of floats of 8: it is a two-hundredth of a model's weights, and what its rounding
    loses is in the logits at once. `native` has one head for codes and text.
    """
    return "int8" if precision in {"int4", "fp8", "nvfp4"} and engine != "native" else precision


def precision_of(checkpoint: Checkpoint, weight: str, precision: str) -> str:
    """What the linear with the weight of this name has in a bundle of `precision`."""
    if precision != "mixed":
        return precision
    return "int8" if weight in checkpoint.wide else "int4"


def rounded(weight: Tensor, precision: str, engine: str) -> Tensor:
    """The weight [out, in] that is left of one in `precision`."""
    linear = quantised_linear(weight, precision, engine, largest=1.0)
    return linear.weight if isinstance(linear, nn.Linear) else linear.rounded
