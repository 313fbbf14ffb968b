"""Lowering for TensorRT: one file that ONNX Runtime's CPU provider runs too.

Products and the cache are float16, weights too or of 8 or 4 bits; sums along the layers, norms and the rotation stay
float32. The
attention is TensorRT's own operator, which the file also defines in ONNX's terms, for every other runtime.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower import nvfp4
from mgpt_edge.export.lower.embedding import lower_embedding
from mgpt_edge.export.lower.half import HALF, finite, half
from mgpt_edge.export.lower.linears import last, lower_linears
from mgpt_edge.export.lower.weights import Weights, finish, named
from mgpt_edge.export.quantise import fp8, weight_only
from mgpt_edge.export.quantise.nvfp4 import pack as pack_nvfp4

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.lower.linears import Emit, Weight

    Largest = Callable[[str], float]
    """Weight's name -> the largest magnitude of what its linear is given; precisions with fixed scales need it."""

DOMAIN = "trt"
ATTENTION = "TRT_Attention"
OPSET = 24
IR_VERSION = 13  # ONNX Runtime 1.31 refuses what onnx writes by itself


def lower_decoder(
    model: ir.Model,
    read: Callable[[str], NDArray[np.generic]],
    precision: str,
    capacity: int,
    largest: Largest | None = None,
) -> ir.Model:
    """The traced decoder, in place, for rows whose caches lie in one array a layer.

    Inputs: tokens int32 [rows, width]; lengths int32 [rows], the cached positions before this pass; cos and sin
    float32 [capacity, head_dim / 2]; past.{layer}.{key|value} float16 [rows, kv_heads, capacity, head_dim].
    Outputs: hidden float32 [rows, width, hidden]; present.…, to be bound to the memory of past.….

    A row with fewer new tokens than the pass is wide has any others after them: what they leave in the cache lies
    behind the row's length, and is written over. So no length may be greater than capacity - width.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    tape = Tape()
    places = _Places(tape, graph, weights, capacity)
    graph.insert_before(graph[0], tape.nodes)
    for node in list(graph):
        if node.op_type == "CachedAttention":
            _lower_attention(graph, node, places, weights, capacity)
    lower_linears(graph, weights, _emit(precision, largest))
    lower_embedding(graph, weights)
    function = _attention()
    model.functions[function.identifier()] = function
    return _finish(model, weights, precision)


def lower_head(
    model: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None = None
) -> ir.Model:
    """A traced head; `read("weight")` gives its rows of the vocabulary."""
    graph, weights = model.graph, Weights(model.graph, read)
    traced = graph.outputs[0]
    kind, shape = traced.type, traced.shape
    lower_linears(graph, weights, _emit(precision, largest))
    graph.outputs[0].type, graph.outputs[0].shape = kind, shape  # TensorRT infers no output's type
    return _finish(model, weights, precision)


class _Places:
    """Where the new tokens stand, computed once for all layers."""

    def __init__(self, tape: Tape, graph: ir.Graph, weights: Weights, capacity: int) -> None:
        tokens, lengths, cos, sin = (named(graph.inputs, name) for name in ("tokens", "lengths", "cos", "sin"))
        tokens.type = ir.TensorType(ir.DataType.INT32)  # of int64 its parser warns, and a warning stops a build
        for table in (cos, sin):
            table.shape = ir.Shape([capacity, table.shape[1]])
        width = tape.op("Squeeze", [tape.op("Shape", [tokens], {"start": 1, "end": 2})])
        start = tape.op("Cast", [lengths], {"to": ir.DataType.INT64})
        steps = tape.op("Range", [weights.constant(np.int64(0)), width, weights.constant(np.int64(1))])
        positions = tape.op("Add", [tape.op("Unsqueeze", [start, weights.constant([1])]), steps])
        self.start = start
        self.ends = tape.op("Add", [lengths, tape.op("Cast", [width], {"to": ir.DataType.INT32})])
        self.tables = [tape.op("Gather", [table, positions], {"axis": 0}) for table in (cos, sin)]


def _lower_attention(graph: ir.Graph, node: ir.Node, places: _Places, weights: Weights, capacity: int) -> None:
    """One CachedAttention -> rotation, K and V written into the cache, TensorRT's attention over it."""
    tape = Tape()
    head_dim = node.attributes["head_dim"].as_int()
    q, k, v = (tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]}) for value in node.inputs[:3])
    q, k = (tape.op("RotaryEmbedding", [value, *places.tables]) for value in (q, k))
    q = tape.op("Mul", [q, weights.constant(np.float32(1 / math.sqrt(head_dim)))])  # the operator scales nothing
    q, k, v = (tape.op("Cast", [value], {"to": HALF}) for value in (q, k, v))
    cache = []
    for new, past, present in zip((k, v), node.inputs[3:5], node.outputs[1:], strict=True):
        past.type, past.shape = ir.TensorType(HALF), ir.Shape([past.shape[0], past.shape[1], capacity, head_dim])
        updated = tape.op("TensorScatter", [past, new, places.start], {"axis": -2, "mode": "linear"})
        updated.type, updated.shape = past.type, past.shape
        updated.name, present.name = present.name, None
        graph.outputs[graph.outputs.index(present)] = updated
        cache.append(updated)
    y = tape.op(ATTENTION, [q, *cache, None, None, places.ends], {"causal_kind": "lower_right"}, domain=DOMAIN)
    y = tape.op("Transpose", [tape.op("Cast", [y], {"to": ir.DataType.FLOAT})], {"perm": [0, 2, 1, 3]})
    _name(tape, f"layer.{node.inputs[3].name.split('.')[1]}.attention")
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    graph.remove(node, safe=True)


def _attention() -> ir.Function:
    """What TensorRT's operator means, in ONNX's own: a row's last query sees as many positions as `lengths` says."""
    q, k, v, mask, query_lengths, lengths = (
        ir.Value(name=name) for name in ("q", "k", "v", "mask", "query_lengths", "lengths")
    )
    tape = Tape()
    valid = tape.op("Cast", [lengths], {"to": ir.DataType.INT64})
    y = tape.op("Attention", [q, k, v, None, None, None, valid], {"is_causal": 1, "scale": 1.0})
    y.name = "y"
    body = ir.Graph([q, k, v, mask, query_lengths, lengths], [y], nodes=tape.nodes, opset_imports={"": OPSET})
    kind = ir.Attr("causal_kind", ir.AttributeType.STRING, None)
    return ir.Function(DOMAIN, ATTENTION, graph=body, attributes=[kind])


def _emit_fp16(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    transposed = weights.add(f"{name}.T", HALF, shape[::-1], lambda: half(name, weight().T))
    return _product(tape, name, tape.op("Cast", [x], {"to": HALF}), transposed)


def _emit_packed(
    tape: Tape,
    weights: Weights,
    name: str,
    weight: Weight,
    shape: tuple[int, int],
    x: ir.Value,
    *,
    precision: str,
) -> ir.Value:
    """Weights of fewer bits: TensorRT unpacks them inside the product."""
    bits = weight_only.bits_of(precision, shape[1])
    packed = lru_cache(maxsize=1)(lambda: weight_only.pack(finite(name, weight()), bits))
    values = weights.add(
        f"{name}.int{bits}", STORED[bits], shape[::-1], lambda: packed()[0].astype(STORED[bits].numpy())
    )
    if bits == 8:
        scale_shape, blocks = shape[:1], {"axis": 1}
    else:
        scale_shape, blocks = (shape[1] // weight_only.BLOCK, shape[0]), {"axis": 0, "block_size": weight_only.BLOCK}
    scales = weights.add(f"{name}.scale", HALF, scale_shape, lambda: last(packed)[1].reshape(scale_shape))
    unpacked = tape.op("DequantizeLinear", [values, scales], blocks)
    return _product(tape, name, tape.op("Cast", [x], {"to": HALF}), unpacked)


def _emit_fp8(
    tape: Tape,
    weights: Weights,
    name: str,
    weight: Weight,
    shape: tuple[int, int],
    x: ir.Value,
    *,
    largest: Largest,
) -> ir.Value:
    """Both sides of the product through 8 bits: TensorRT multiplies those."""
    packed = lru_cache(maxsize=1)(lambda: fp8.pack(finite(name, weight())))
    values = weights.add(f"{name}.fp8", FP8, shape[::-1], lambda: packed()[0])
    scales = weights.add(f"{name}.scale", HALF, shape[:1], lambda: last(packed)[1])
    scale = weights.constant(fp8.activation_scale(largest(name.partition("+")[0])))
    kept = tape.op("QuantizeLinear", [tape.op("Cast", [x], {"to": HALF}), scale], {"output_dtype": FP8.value})
    return _product(
        tape,
        name,
        tape.op("DequantizeLinear", [kept, scale]),
        tape.op("DequantizeLinear", [values, scales], {"axis": 1}),
    )


def _emit_nvfp4(
    tape: Tape,
    weights: Weights,
    name: str,
    weight: Weight,
    shape: tuple[int, int],
    x: ir.Value,
    *,
    largest: Largest,
) -> ir.Value:
    unpacked = nvfp4.unpacked_weight(tape, weights, name, lambda: pack_nvfp4(finite(name, weight())), shape)
    kept = nvfp4.rounded_activations(tape, weights, x, largest(name.partition("+")[0]))
    return _product(tape, name, kept, unpacked)


def _product(tape: Tape, name: str, x: ir.Value, weight: ir.Value) -> ir.Value:
    """Product of float16, given as such."""
    y = tape.op("MatMul", [x, weight])
    y = tape.op("Cast", [y], {"to": ir.DataType.FLOAT})
    _name(tape, name)
    return y


STORED = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
FP8 = ir.DataType.FLOAT8E4M3FN
PRECISIONS = ("fp16", "int8", "int4", "fp8", "nvfp4")


def _emit(precision: str, largest: Largest | None) -> Emit:
    if precision in {"fp8", "nvfp4"}:
        return partial(_emit_fp8 if precision == "fp8" else _emit_nvfp4, largest=largest)
    return _emit_fp16 if precision == "fp16" else partial(_emit_packed, precision=precision)


def _name(tape: Tape, prefix: str) -> None:
    """Nodes are called by the weights or the layer they belong to: profilers print those names."""
    for index, node in enumerate(tape.nodes):
        node.name = f"{prefix}.{node.op_type}.{index}"


def _finish(model: ir.Model, weights: Weights, precision: str) -> ir.Model:
    if precision == "nvfp4":
        function = nvfp4.quantise_function(OPSET)
        model.functions[function.identifier()] = function
    return finish(model, weights, {"": OPSET, DOMAIN: 1}, IR_VERSION)
