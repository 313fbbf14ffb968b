"""Lowering for TensorRT 10.3 (JetPack 6) and later ones before 11: standard operators of opset 20 only.

Types are those of `tensorrt`. The cache is read and not written: attention looks at it and at the new tokens side by
side, and the new keys and values are outputs, for CUDA code of ours to put into the cache.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.lower.embedding import lower_embedding
from mgpt_edge.export.lower.graphs import GraphLowering
from mgpt_edge.export.lower.half import HALF
from mgpt_edge.export.lower.linears import lower_linears
from mgpt_edge.export.lower.positions import Positions
from mgpt_edge.export.lower.products import OPERANDS, emit
from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.lower.weights import Weights, finish, name_nodes, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.lower.lowering import Largest, Source

OPSET = 20
OPSET_INT4 = 21  # the first in which ONNX has 4 bits, and blocks; TensorRT 10 reads both, and asks for no opset
IR_VERSION = 10
UNSEEN = np.float32(-1e9)  # added to the scores of what a token must not see


def lower_decoder(
    model: ir.Model,
    read: Callable[[str], NDArray[np.generic]],
    precision: str,
    capacity: int,
    largest: Largest | None = None,
) -> ir.Model:
    """The traced decoder, in place, for rows whose caches lie in one array a layer.

    Inputs: tokens int32 [rows, width]; lengths int32 [rows], the cached positions before this pass; cos and sin
    float32 [capacity, head_dim / 2]; past.{layer}.{key|value} float16 [rows, kv_heads, capacity, head_dim], where
    what stands behind a row's length is finite.
    Outputs: hidden float32 [rows, width, hidden]; fresh.{layer}.{key|value} float16 [rows, kv_heads, width, head_dim].

    A row with fewer new tokens than the pass is wide has any others after them, whose outputs mean nothing. No length
    may be greater than capacity - width.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    tape = Tape()
    positions = Positions(tape, graph, weights, capacity)
    mask = _mask(tape, positions, weights)
    graph.insert_before(graph[0], tape.nodes)
    for node in list(graph):
        if node.op_type == "CachedAttention":
            _lower_attention(graph, node, positions, mask, weights)
        elif node.op_type == "RMSNormalization":
            _lower_norm(graph, node, weights)
    lower_linears(graph, weights, emit(LOWERING.emitter(precision), largest))
    lower_embedding(graph, weights)
    return _finish(model, weights, precision)


def lower_head(
    model: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None = None
) -> ir.Model:
    """A traced head; `read("weight")` gives its rows of the vocabulary."""
    weights = Weights(model.graph, read)
    lower_linears(model.graph, weights, emit(LOWERING.emitter(precision), largest))
    return _finish(model, weights, precision)


def split_group_norms(model: ir.Model) -> ir.Model:
    """A lowered VQ graph, in place: norms of groups become norms of one channel each, scaled and shifted outside.

    ONNX scales a group's channels each by its own from opset 21 on; parsers of TensorRT 10 know one scale a group.
    """
    for node in list(model.graph):
        if node.op_type != "GroupNormalization":
            continue
        tape, (x, *affine) = Tape(), node.inputs
        groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes["epsilon"].as_float()

        def constant(array: NDArray[np.generic], tape: Tape = tape) -> ir.Value:
            return tape.op("Constant", [], {"value": ir.tensor(array)})

        flat = tape.op("Reshape", [x, constant(np.array([0, groups, -1]))])
        ones, zeros = constant(np.ones(groups, np.float32)), constant(np.zeros(groups, np.float32))
        flat = tape.op("InstanceNormalization", [flat, ones, zeros], {"epsilon": epsilon})
        scale, shift = (tape.op("Unsqueeze", [value, constant(np.array([1, 2]))]) for value in affine)
        scaled = tape.op("Mul", [tape.op("Reshape", [flat, tape.op("Shape", [x])]), scale])
        model.graph.insert_before(node, [*tape.nodes, added := ir.node("Add", [scaled, shift])])
        replace(node.outputs[0], added.outputs[0])
        model.graph.remove(node, safe=True)
    return model


def _mask(tape: Tape, positions: Positions, weights: Weights) -> ir.Value:
    """Float32 [rows, 1, width, capacity + width]: 0 for cached positions below a row's length and for new tokens up to
    the one that looks, `UNSEEN` for others.
    """
    zero, one, capacity = (weights.constant(np.int64(number)) for number in (0, 1, positions.capacity))
    columns = tape.op("Range", [zero, tape.op("Add", [capacity, positions.width]), one])
    cached = tape.op("Less", [columns, tape.op("Unsqueeze", [positions.start, weights.constant([1, 2, 3])])])
    looking = tape.op("Unsqueeze", [tape.op("Add", [positions.steps, capacity]), weights.constant([1])])
    new = tape.op("And", [tape.op("GreaterOrEqual", [columns, capacity]), tape.op("LessOrEqual", [columns, looking])])
    return tape.op("Where", [tape.op("Or", [cached, new]), weights.constant(np.float32(0)), weights.constant(UNSEEN)])


def _lower_attention(graph: ir.Graph, node: ir.Node, positions: Positions, mask: ir.Value, weights: Weights) -> None:
    """One CachedAttention -> rotation, scores of cached and of new tokens, one softmax over both."""
    tape = Tape()
    heads, kv_heads, head_dim = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads", "head_dim"))
    pasts = node.inputs[3:5]
    for past in pasts:
        past.type = ir.TensorType(HALF)
        past.shape = ir.Shape([*past.shape[:2], positions.capacity, head_dim])
    q, k = (_rotated(tape, value, positions, weights) for value in node.inputs[:2])
    q = tape.op("Mul", [q, weights.constant(np.float32(1 / math.sqrt(head_dim)))])
    transposed = [tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]}) for value in (q, k, node.inputs[2])]
    q, k, v = (tape.op("Cast", [value], {"to": HALF}) for value in transposed)

    def heads_as(count: int, x: ir.Value) -> ir.Value:
        """Heads that share a key lie side by side: as many queries of one, or heads again."""
        return x if heads == kv_heads else tape.op("Reshape", [x, weights.constant([0, count, -1, 0])])

    q, axes = heads_as(kv_heads, q), {"perm": [0, 1, 3, 2]}
    scores = [tape.op("MatMul", [q, tape.op("Transpose", [keys], axes)]) for keys in (pasts[0], k)]
    scores = tape.op("Cast", [heads_as(heads, tape.op("Concat", scores, {"axis": -1}))], {"to": ir.DataType.FLOAT})
    shares = tape.op("Softmax", [tape.op("Add", [scores, mask])], {"axis": -1})
    shares = heads_as(kv_heads, tape.op("Cast", [shares], {"to": HALF}))
    ends = [weights.constant([end]) for end in (0, positions.capacity, np.iinfo(np.int64).max)]
    parts = [tape.op("Slice", [shares, *part, weights.constant([3])]) for part in pairwise(ends)]
    y = tape.op("Add", [tape.op("MatMul", list(pair)) for pair in zip(parts, (pasts[1], v), strict=True)])
    y = tape.op("Cast", [heads_as(heads, y)], {"to": ir.DataType.FLOAT})
    y = tape.op("Transpose", [y], {"perm": [0, 2, 1, 3]})

    name_nodes(tape, f"layer.{pasts[0].name.split('.')[1]}.attention")
    graph.insert_before(node, tape.nodes)
    for fresh, past, present in zip((k, v), pasts, node.outputs[1:], strict=True):
        fresh.name, present.name = past.name.replace("past", "fresh"), None
        fresh.type, fresh.shape = past.type, ir.Shape([*past.shape[:2], "width", head_dim])
        graph.outputs[graph.outputs.index(present)] = fresh
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    graph.remove(node, safe=True)


def _rotated(tape: Tape, x: ir.Value, positions: Positions, weights: Weights) -> ir.Value:
    """Rotary embedding of x [rows, width, heads, head_dim], half-split layout."""
    half = x.shape[-1] // 2
    low, high = tape.op_multi_out("Split", [x, weights.constant([half, half])], {"axis": -1}, num_outputs=2)
    cos, sin = (tape.op("Unsqueeze", [table, weights.constant([2])]) for table in positions.tables)
    turned = [
        tape.op("Sub", [tape.op("Mul", [low, cos]), tape.op("Mul", [high, sin])]),
        tape.op("Add", [tape.op("Mul", [high, cos]), tape.op("Mul", [low, sin])]),
    ]
    return tape.op("Concat", turned, {"axis": -1})


def _lower_norm(graph: ir.Graph, node: ir.Node, weights: Weights) -> None:
    tape = Tape()
    x, weight = node.inputs
    mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), weights.constant([-1])])
    epsilon = weights.constant(np.float32(node.attributes["epsilon"].as_float()))
    root = tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])
    y = tape.op("Mul", [tape.op("Div", [x, root]), weight])
    name_nodes(tape, weight.name)
    graph.insert_before(node, tape.nodes)
    replace(node.outputs[0], y)
    graph.remove(node, safe=True)


def _finish(model: ir.Model, weights: Weights, precision: str) -> ir.Model:
    opset = OPSET_INT4 if precision == "int4" else OPSET
    return finish(model, weights, {"": opset}, IR_VERSION)


class TensorRt10Lowering(GraphLowering):
    """For TensorRT 10.3 up to 11."""

    name = "tensorrt10"
    activations = "halves"
    emit = OPERANDS

    def decoder(self, graph: ir.Model, source: Source) -> ir.Model:
        return lower_decoder(graph, source.checkpoint.array, source.precision, source.capacity, source.largest)

    def head(
        self, graph: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None
    ) -> ir.Model:
        return lower_head(graph, read, precision, largest)

    def vq(self, model: ir.Model, read: Callable[[str], NDArray[np.generic]]) -> ir.Model:
        return split_group_norms(lower_vq(model, read, narrow_codes=True))


LOWERING = TensorRt10Lowering()
