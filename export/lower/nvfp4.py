"""Products of 4-bit floats for TensorRT, and what its operator for activations means in ONNX's own."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower.linears import last
from mgpt_edge.export.quantise import nvfp4

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.export.lower.weights import Weights

DOMAIN, QUANTISE = "trt", "TRT_FP4DynamicQuantize"
FP4, FP8, FLOAT, HALF = (
    ir.DataType.FLOAT4E2M1,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
)


def unpacked_weight(
    tape: Tape, weights: Weights, name: str, pack: Callable[[], nvfp4.Packed], shape: tuple[int, int]
) -> ir.Value:
    """The float16 weight [in, out] that TensorRT never makes: it multiplies what it is made of."""
    packed = lru_cache(maxsize=1)(pack)
    out, width = shape
    values = weights.add(f"{name}.fp4", FP4, (width, out), lambda: packed()[0])
    scales = weights.add(f"{name}.scale", FP8, (width // nvfp4.BLOCK, out), lambda: packed()[1])
    above = weights.add(f"{name}.scale.above", FLOAT, (), lambda: np.asarray(last(packed)[2]))
    steps = tape.op("DequantizeLinear", [scales, above])
    weight = tape.op("DequantizeLinear", [values, steps], {"axis": 0, "block_size": nvfp4.BLOCK})
    return tape.op("Cast", [weight], {"to": HALF})


def rounded_activations(tape: Tape, weights: Weights, x: ir.Value, largest: float) -> ir.Value:
    """Float32 x [rows, width, in] in float16, through blocks of 4-bit floats."""
    above = weights.constant(nvfp4.global_scale(largest))
    attributes = {"axis": -1, "block_size": nvfp4.BLOCK, "scale_type": FP8.value}
    values, scales = tape.op_multi_out(
        QUANTISE, [tape.op("Cast", [x], {"to": HALF}), above], attributes, domain=DOMAIN, num_outputs=2
    )
    values.type, scales.type = ir.TensorType(FP4), ir.TensorType(FP8)
    steps = tape.op("DequantizeLinear", [scales, above])
    kept = tape.op("DequantizeLinear", [values, steps], {"axis": -1, "block_size": nvfp4.BLOCK})
    return tape.op("Cast", [kept], {"to": HALF})


def quantise_function(opset: int) -> ir.Function:
    """TensorRT's operator in ONNX's own: each block's scale in e4m3, and its values in e2m1."""
    x, above = ir.Value(name="x"), ir.Value(name="above")
    tape = Tape()
    constant = lambda array: tape.op("Constant", [], {"value": ir.tensor(np.asarray(array))})  # noqa: E731
    floats = tape.op("Cast", [x], {"to": FLOAT})
    blocks = tape.op("Reshape", [floats, constant(np.array([0, 0, -1, nvfp4.BLOCK]))])
    largest = tape.op("ReduceMax", [tape.op("Abs", [blocks]), constant(np.array([-1]))], {"keepdims": 1})
    exact = tape.op("Div", [tape.op("Div", [largest, constant(np.float32(nvfp4.LARGEST))]), above])
    scales = tape.op("Cast", [tape.op("Min", [exact, constant(np.float32(nvfp4.LARGEST_SCALE))])], {"to": FP8})
    step = tape.op("Mul", [tape.op("Cast", [scales], {"to": FLOAT}), above])
    none = tape.op("Equal", [step, constant(np.float32(0))])
    divided = tape.op("Div", [blocks, tape.op("Where", [none, constant(np.float32(1)), step])])
    highest = [constant(np.float32(sign * nvfp4.LARGEST)) for sign in (-1, 1)]
    values = tape.op("Reshape", [tape.op("Clip", [divided, *highest]), tape.op("Shape", [x])])
    values = tape.op("Cast", [values], {"to": FP4})
    scales = tape.op("Squeeze", [scales, constant(np.array([-1]))])
    body = ir.Graph([x, above], [values, scales], nodes=tape.nodes, opset_imports={"": opset})
    kinds = [ir.Attr(name, ir.AttributeType.INT, None) for name in ("axis", "block_size", "scale_type")]
    return ir.Function(DOMAIN, QUANTISE, graph=body, attributes=kinds)
