"""Linear layers for ONNX Runtime on the CPU, a function for each precision."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower.weights import replace
from mgpt_edge.export.quantise import int4, int8

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.lower.weights import Weights

    Weight = Callable[[], NDArray[np.float32]]
    Emit = Callable[[Tape, Weights, str, Weight, tuple[int, int], ir.Value], ir.Value]

CONTRIB = "com.microsoft"


def lower_linears(graph: ir.Graph, weights: Weights, emit: Emit) -> None:
    """Products x @ transpose(weight) -> what `emit` makes of them; linears that read the same x become one."""
    linears = [node for node in graph if node.op_type == "MatMul" and _weight_name(node) in graph.initializers]
    for _, group in groupby(linears, key=lambda node: id(node.inputs[0])):
        nodes = list(group)
        names = [_weight_name(node) for node in nodes]
        outs = [graph.initializers[name].shape[0] for name in names]
        shape = (sum(outs), graph.initializers[names[0]].shape[1])
        tape = Tape()
        weight = lambda names=names: np.concatenate([weights.float32(name) for name in names])  # noqa: E731
        y = emit(tape, weights, "+".join(names), weight, shape, nodes[0].inputs[0])
        if len(nodes) == 1:
            parts = [y]
        else:
            parts = tape.op_multi_out("Split", [y, weights.constant(outs)], {"axis": -1}, num_outputs=len(outs))
        graph.insert_before(nodes[0], tape.nodes)
        for node, part in zip(nodes, parts, strict=True):
            replace(node.outputs[0], part)
            graph.remove([node, node.inputs[1].producer()], safe=True)


def _weight_name(node: ir.Node) -> str:
    producer = node.inputs[1].producer()
    return producer.inputs[0].name if producer is not None and producer.op_type == "Transpose" else ""


def _emit_fp32(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    transposed = weights.add(f"{name}.T", ir.DataType.FLOAT, shape[::-1], lambda: np.ascontiguousarray(weight().T))
    return tape.op("MatMul", [x, transposed])


def _emit_int8(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    """Activations as uint8 about 128 with a scale a token: the form for which the CPU has fast kernels."""
    packed = lru_cache(maxsize=1)(lambda: int8.pack(weight()))
    quantised = weights.add(f"{name}.int8", ir.DataType.INT8, shape[::-1], lambda: packed()[0])
    scale = weights.add(f"{name}.scale", ir.DataType.FLOAT, shape[:1], lambda: last(packed)[1])

    one, zero = weights.constant(np.float32(1)), weights.constant(np.uint8(128))
    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), weights.constant([-1])], {"keepdims": 1})
    token = tape.op("Mul", [largest, weights.constant(np.float32(1 / int8.LARGEST))])
    token = tape.op("Max", [token, weights.constant(np.float32(int8.SMALLEST_SCALE))])
    activations = tape.op("QuantizeLinear", [tape.op("Div", [x, token]), one, zero])
    total = tape.op("MatMulIntegerToFloat", [activations, quantised, one, scale, zero], domain=CONTRIB)
    return tape.op("Mul", [total, token])


def _emit_int4(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    out, width = shape
    if not int4.fits(width):
        return _emit_int8(tape, weights, name, weight, shape, x)
    packed = lru_cache(maxsize=1)(lambda: int4.pack(weight()))
    blocks = width // int4.BLOCK
    values = weights.add(f"{name}.int4", ir.DataType.UINT8, (out, blocks, int4.BLOCK // 2), lambda: packed()[0])
    scales = weights.add(f"{name}.scale", ir.DataType.FLOAT, (out * blocks,), lambda: last(packed)[1].reshape(-1))
    attributes = {"K": width, "N": out, "bits": 4, "block_size": int4.BLOCK, "accuracy_level": 4}
    return tape.op("MatMulNBits", [x, values, scales], attributes, domain=CONTRIB)


EMIT: dict[str, Emit] = {"fp32": _emit_fp32, "int8": _emit_int8, "int4": _emit_int4}


def last(packed: Callable[[], tuple[NDArray[np.generic], ...]]) -> tuple[NDArray[np.generic], ...]:
    """The packed arrays for the last time: nothing keeps them afterwards."""
    result = packed()
    packed.cache_clear()
    return result
