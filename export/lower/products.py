"""Linear layers for TensorRT, a function for each precision: float16 products of what it multiplies or unpacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mgpt_edge.export.lower.half import HALF, finite, half
from mgpt_edge.export.lower.linears import last
from mgpt_edge.export.lower.weights import name_nodes
from mgpt_edge.export.quantise import weight_only

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from onnx_ir.tape import Tape

    from mgpt_edge.export.lower.linears import Emit, Weight
    from mgpt_edge.export.lower.lowering import Largest
    from mgpt_edge.export.lower.weights import Weights

    Operands = Callable[["Linear"], list[ir.Value]]
    """A linear -> the two factors of its product, float16 both."""

STORED = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


def emit(operands: Operands, largest: Largest | None) -> Emit:
    """What `lower_linears` makes of each linear."""

    def multiply(*parts: object) -> ir.Value:
        linear = Linear(*parts, largest)  # type: ignore[arg-type]
        y = linear.tape.op("MatMul", operands(linear))
        y = linear.tape.op("Cast", [y], {"to": ir.DataType.FLOAT})
        name_nodes(linear.tape, linear.name)
        return y

    return multiply


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear that is being lowered: `x` float32 [rows, width, in], `weight` [out, in], and what `Emit` says."""

    tape: Tape
    weights: Weights
    name: str
    weight: Weight
    shape: tuple[int, int]
    x: ir.Value
    largest: Largest | None

    def finite(self) -> NDArray[np.float32]:
        return finite(self.name, self.weight())

    def half(self) -> ir.Value:
        return self.tape.op("Cast", [self.x], {"to": HALF})

    def largest_input(self) -> float:
        """Linears that were joined read the same."""
        return self.largest(self.name.partition("+")[0])

    def rounded(self, scale: ir.Value, kind: np.dtype[np.generic] | type[np.generic]) -> ir.Value:
        """The input as float16 through another type, which the zero point says: an attribute can from opset 21 on."""
        step = [scale, self.weights.constant(np.zeros((), kind))]
        return self.tape.op("DequantizeLinear", [self.tape.op("QuantizeLinear", [self.half(), *step]), *step])

    def unpacked(self, bits: int) -> ir.Value:
        """The float16 weight [in, out] that TensorRT never makes: it unpacks what is stored inside the product."""
        out, width = self.shape
        packed = lru_cache(maxsize=1)(lambda: weight_only.pack(self.finite(), bits))
        kind = STORED[bits]
        values = self.weights.add(
            f"{self.name}.int{bits}", kind, (width, out), lambda: packed()[0].astype(kind.numpy())
        )
        shape, blocks = (out,), {"axis": 1}
        if bits == 4:
            shape, blocks = (width // weight_only.BLOCK, out), {"axis": 0, "block_size": weight_only.BLOCK}
        scales = self.weights.add(f"{self.name}.scale", HALF, shape, lambda: last(packed)[1].reshape(shape))
        return self.tape.op("DequantizeLinear", [values, scales], blocks)


def _fp16(linear: Linear) -> list[ir.Value]:
    array = lambda: half(linear.name, linear.weight().T)  # noqa: E731
    return [linear.half(), linear.weights.add(f"{linear.name}.T", HALF, linear.shape[::-1], array)]


def _int8(linear: Linear) -> list[ir.Value]:
    return [linear.half(), linear.unpacked(8)]


def _int4(linear: Linear) -> list[ir.Value]:
    return [linear.half(), linear.unpacked(weight_only.bits_of("int4", linear.shape[1]))]


OPERANDS: dict[str, Operands] = {"fp16": _fp16, "int8": _int8, "int4": _int4}
"""Precision -> the two factors of its product, float16 both; precisions with fixed scales bring their own."""
