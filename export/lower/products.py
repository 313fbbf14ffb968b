"""Linear layers for TensorRT, a function for each precision: float16 products of what it multiplies or unpacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mgpt_edge.export.lower import nvfp4
from mgpt_edge.export.lower.half import HALF, finite, half
from mgpt_edge.export.lower.linears import last
from mgpt_edge.export.lower.weights import name_nodes
from mgpt_edge.export.quantise import fp8, w8a8, weight_only
from mgpt_edge.export.quantise.nvfp4 import pack as pack_nvfp4

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from onnx_ir.tape import Tape

    from mgpt_edge.export.lower.linears import Emit, Weight
    from mgpt_edge.export.lower.weights import Weights

    Largest = Callable[[str], float]
    """Weight's name -> the largest magnitude of what its linear is given; precisions with fixed scales need it."""

STORED = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
FP8 = ir.DataType.FLOAT8E4M3FN


def emit(precision: str, largest: Largest | None) -> Emit:
    """What `lower_linears` makes of each linear."""
    operands = OPERANDS[precision]

    def multiply(*parts: object) -> ir.Value:
        linear = _Linear(*parts, largest)  # type: ignore[arg-type]
        y = linear.tape.op("MatMul", operands(linear))
        y = linear.tape.op("Cast", [y], {"to": ir.DataType.FLOAT})
        name_nodes(linear.tape, linear.name)
        return y

    return multiply


@dataclass(frozen=True, slots=True)
class _Linear:
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


def _fp16(linear: _Linear) -> list[ir.Value]:
    array = lambda: half(linear.name, linear.weight().T)  # noqa: E731
    return [linear.half(), linear.weights.add(f"{linear.name}.T", HALF, linear.shape[::-1], array)]


def _int8(linear: _Linear) -> list[ir.Value]:
    return [linear.half(), linear.unpacked(8)]


def _int4(linear: _Linear) -> list[ir.Value]:
    return [linear.half(), linear.unpacked(weight_only.bits_of("int4", linear.shape[1]))]


def _w8a8(linear: _Linear) -> list[ir.Value]:
    """Both sides through 8 bits: TensorRT multiplies those."""
    scale = linear.weights.constant(w8a8.activation_scale(linear.largest_input()))
    return [linear.rounded(scale, np.int8), linear.unpacked(8)]


def _fp8(linear: _Linear) -> list[ir.Value]:
    """As 8-bit integers, in floats of 8 bits."""
    tape, weights, name = linear.tape, linear.weights, linear.name
    packed = lru_cache(maxsize=1)(lambda: fp8.pack(linear.finite()))
    values = weights.add(f"{name}.fp8", FP8, linear.shape[::-1], lambda: packed()[0])
    scales = weights.add(f"{name}.scale", HALF, linear.shape[:1], lambda: last(packed)[1])
    scale = weights.constant(fp8.activation_scale(linear.largest_input()))
    return [linear.rounded(scale, FP8.numpy()), tape.op("DequantizeLinear", [values, scales], {"axis": 1})]


def _nvfp4(linear: _Linear) -> list[ir.Value]:
    tape, weights = linear.tape, linear.weights
    weight = nvfp4.unpacked_weight(tape, weights, linear.name, lambda: pack_nvfp4(linear.finite()), linear.shape)
    return [nvfp4.rounded_activations(tape, weights, linear.x, linear.largest_input()), weight]


OPERANDS: dict[str, Callable[[_Linear], list[ir.Value]]] = {
    "fp16": _fp16,
    "int8": _int8,
    "int4": _int4,
    "w8a8": _w8a8,
    "fp8": _fp8,
    "nvfp4": _nvfp4,
}
"""Precision -> the two factors of its product, float16 both."""
