"""Lowering for ONNX Runtime on the CPU: two rows in one pass, each with a cache of its own.

GroupQueryAttention takes several tokens with a past only at batch 1, so the tokens of both rows are
laid end to end for every other operator, and split for one attention a row.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from mgpt_edge.export.quantise import int4, int8
from mgpt_edge.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Weight = Callable[[], NDArray[np.float32]]
    Emit = Callable[[Tape, "Weights", str, Weight, tuple[int, int], ir.Value], ir.Value]

ROWS = 2
CONTRIB = "com.microsoft"
PRECISIONS = ("fp32", "int8", "int4")


class Weights:
    """Turns the names of a traced graph into arrays, one at a time, when they are written.

    Args:
        graph: as traced; its initializers are names without data.
        read: such a name -> array in the checkpoint's own dtype.
    """

    def __init__(self, graph: ir.Graph, read: Callable[[str], NDArray[np.generic]]) -> None:
        self.traced = frozenset(graph.initializers)
        self.read = read
        self.added: list[ir.Value] = []

    def float32(self, name: str) -> NDArray[np.float32]:
        return self.read(name).astype(np.float32)

    def add(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], array: Callable[[], NDArray[np.generic]]
    ) -> ir.Value:
        """A new initializer whose array is computed when it is written."""
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(array(), dtype=dtype, name=name), dtype=dtype, shape=ir.Shape(shape), name=name
        )
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        self.added.append(value)
        return value


def lower_decoder(model: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str) -> ir.Model:
    """The traced decoder, in place, for two rows of different length and width.

    Inputs: tokens.{row} int64 [1, n_row]; seqlen.{row} int32 [1], the positions after this pass less one;
    total.{row} int32 [], the same number not less one; cos and sin; past.{layer}.{key|value}.{row}.
    Outputs: hidden [1, n_0 + n_1, hidden]; present.….{row}, which may be bound to the memory of past.….{row}.
    """
    graph, weights = model.graph, Weights(model.graph, read)
    _check_heads(graph)
    sizes = _join_rows(graph)
    for node in list(graph):
        if node.op_type == "CachedAttention":
            _split_attention(graph, node, sizes)
    _fill_shapes(graph)
    _lower_linears(graph, weights, precision)
    _lower_embedding(graph, weights)
    _fuse_residual_norms(graph)
    return _finish(model, weights)


def lower_head(model: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str) -> ir.Model:
    """A traced head; `read("weight")` gives its rows of the vocabulary."""
    weights = Weights(model.graph, read)
    _lower_linears(model.graph, weights, precision)
    return _finish(model, weights)


def lower_vq(model: ir.Model, read: Callable[[str], NDArray[np.generic]]) -> ir.Model:
    """The VQ graphs run in float32 in the family's own code, and here."""
    return _finish(model, Weights(model.graph, read))


def _check_heads(graph: ir.Graph) -> None:
    head_dim = next(node for node in graph if node.op_type == "CachedAttention").attributes["head_dim"].as_int()
    if head_dim % 16:
        msg = f"ONNX Runtime's attention takes head_dim in multiples of 16, this checkpoint has {head_dim}"
        raise CheckpointError(msg)


def _join_rows(graph: ir.Graph) -> ir.Value:
    """Replaces `tokens` by an input a row; returns their counts [ROWS]."""
    tape = Tape()
    rows = [_input(f"tokens.{row}", ir.DataType.INT64, [1, f"n{row}"]) for row in range(ROWS)]
    tokens = tape.op("Concat", rows, {"axis": 1})
    sizes = tape.op("Concat", [tape.op("Shape", [row], {"start": 1}) for row in rows], {"axis": 0})
    ir.convenience.replace_all_uses_with(_named(graph.inputs, "tokens"), tokens)
    graph.insert_before(graph[0], tape.nodes)
    lengths = [
        _input(f"{name}.{row}", ir.DataType.INT32, shape)
        for row in range(ROWS)
        for name, shape in (("seqlen", [1]), ("total", []))
    ]
    tables = [_named(graph.inputs, name) for name in ("cos", "sin")]
    graph.inputs[:] = [*rows, *lengths, *tables]
    graph.outputs[:] = graph.outputs[:1]
    return sizes


def _split_attention(graph: ir.Graph, node: ir.Node, sizes: ir.Value) -> None:
    """One CachedAttention over joined rows -> one GroupQueryAttention a row, cache in place."""
    tape = Tape()
    heads, kv_heads, head_dim = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads", "head_dim"))
    flat = tape.initializer(ir.tensor(np.array([0, 0, -1]), name=f"{node.outputs[0].name}.flat"))
    parts = []
    for value in node.inputs[:3]:
        joined = tape.op("Reshape", [value, flat])
        parts.append(tape.op_multi_out("Split", [joined, sizes], {"axis": 1}, num_outputs=ROWS))
    tables = [_named(graph.inputs, name) for name in ("cos", "sin")]
    pasts = [value.name for value in node.inputs[3:5]]
    outputs = []
    for row in range(ROWS):
        cache = [
            _input(f"{name}.{row}", ir.DataType.FLOAT, [1, kv_heads, f"capacity{row}", head_dim]) for name in pasts
        ]
        lengths = [_named(graph.inputs, f"{name}.{row}") for name in ("seqlen", "total")]
        y, *present = tape.op_multi_out(
            "GroupQueryAttention",
            [*(part[row] for part in parts), *cache, *lengths, *tables],
            {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1},
            domain=CONTRIB,
            num_outputs=3,
        )
        for value, past in zip(present, cache, strict=True):
            value.name = past.name.replace("past", "present")
            value.type, value.shape = past.type, past.shape
        graph.inputs.extend(cache)
        graph.outputs.extend(present)
        outputs.append(y)
    joined = tape.op("Concat", outputs, {"axis": 1})
    (flatten,) = (use.node for use in node.outputs[0].uses())  # the traced [.., heads, D] -> [.., heads * D]
    for value in tape.initializers:
        graph.register_initializer(value)
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(flatten.outputs[0], joined)
    graph.remove([flatten, node], safe=True)


def _fill_shapes(graph: ir.Graph) -> None:
    """Reshapes that compute their leading dimensions keep them instead (0 in ONNX): six operators fewer each."""
    constants: dict[tuple[int, ...], ir.Value] = {}
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1].is_initializer():
            continue
        shape = node.outputs[0].shape
        if shape is None or len(shape) < 3 or any(not isinstance(size, int) for size in shape[2:]):
            continue
        sizes = (0, 0, *shape[2:])
        if sizes not in constants:
            constants[sizes] = ir.Value(
                name=f"shape{sizes}", const_value=ir.tensor(np.array(sizes), name=f"shape{sizes}")
            )
            graph.register_initializer(constants[sizes])
        node.replace_input_with(1, constants[sizes])
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _lower_linears(graph: ir.Graph, weights: Weights, precision: str) -> None:
    """x @ transpose(weight) -> the precision's operators; linears that read the same x become one."""
    linears = [node for node in graph if node.op_type == "MatMul" and _weight_name(node) in graph.initializers]
    for _, group in groupby(linears, key=lambda node: (id(node.inputs[0]), id(node.graph))):
        nodes = list(group)
        names = [_weight_name(node) for node in nodes]
        outs = [graph.initializers[name].shape[0] for name in names]
        shape = (sum(outs), graph.initializers[names[0]].shape[1])
        tape = Tape()
        weight = lambda names=names: np.concatenate([weights.float32(name) for name in names])  # noqa: E731
        y = EMIT[precision](tape, weights, "+".join(names), weight, shape, nodes[0].inputs[0])
        if len(nodes) == 1:
            parts = [y]
        else:
            sizes = tape.initializer(ir.tensor(np.array(outs), name=f"{names[0]}.split"))
            parts = tape.op_multi_out("Split", [y, sizes], {"axis": -1}, num_outputs=len(outs))
        graph.insert_before(nodes[0], tape.nodes)
        for value in tape.initializers:
            graph.register_initializer(value)
        for node, part in zip(nodes, parts, strict=True):
            _replace(node.outputs[0], part)
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
    scale = weights.add(f"{name}.scale", ir.DataType.FLOAT, shape[:1], lambda: _last(packed)[1])

    def constant(label: str, value: np.generic | NDArray[np.generic]) -> ir.Value:
        return tape.initializer(ir.tensor(np.asarray(value), name=f"{name}.{label}"))

    axis, one, zero = constant("axis", np.array([-1])), constant("one", np.float32(1)), constant("zero", np.uint8(128))
    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), axis], {"keepdims": 1})
    token = tape.op("Mul", [largest, constant("step", np.float32(1 / int8.LARGEST))])
    token = tape.op("Max", [token, constant("least", np.float32(int8.SMALLEST_SCALE))])
    activations = tape.op("QuantizeLinear", [tape.op("Div", [x, token]), one, zero])
    total = tape.op("MatMulIntegerToFloat", [activations, quantised, one, scale, zero], domain=CONTRIB)
    return tape.op("Mul", [total, token])


def _emit_int4(
    tape: Tape, weights: Weights, name: str, weight: Weight, shape: tuple[int, int], x: ir.Value
) -> ir.Value:
    packed = lru_cache(maxsize=1)(lambda: int4.pack(weight()))
    out, width = shape
    blocks = width // int4.BLOCK
    values = weights.add(f"{name}.int4", ir.DataType.UINT8, (out, blocks, int4.BLOCK // 2), lambda: packed()[0])
    scales = weights.add(f"{name}.scale", ir.DataType.FLOAT, (out * blocks,), lambda: _last(packed)[1].reshape(-1))
    attributes = {"K": width, "N": out, "bits": 4, "block_size": int4.BLOCK, "accuracy_level": 4}
    return tape.op("MatMulNBits", [x, values, scales], attributes, domain=CONTRIB)


EMIT: dict[str, Emit] = {"fp32": _emit_fp32, "int8": _emit_int8, "int4": _emit_int4}


def _last(packed: Callable[[], tuple[NDArray[np.generic], ...]]) -> tuple[NDArray[np.generic], ...]:
    """The packed arrays for the last time: nothing keeps them afterwards."""
    result = packed()
    packed.cache_clear()
    return result


def _lower_embedding(graph: ir.Graph, weights: Weights) -> None:
    """Keeps the table in the checkpoint's own dtype, half the bytes of float32 and exact."""
    (gather,) = (node for node in graph if node.op_type == "Gather" and node.outputs[0].name == "embedding")
    name = gather.inputs[0].name
    sample = ir.tensor(weights.read(name)[:1])
    if sample.dtype == ir.DataType.FLOAT:
        return
    tape = Tape()
    table = weights.add(f"{name}.stored", sample.dtype, gather.inputs[0].shape.numpy(), lambda: weights.read(name))
    rows = tape.op("Gather", [table, gather.inputs[1]])
    x = tape.op("Cast", [rows], {"to": ir.DataType.FLOAT})
    graph.insert_before(gather, tape.nodes)
    ir.convenience.replace_all_uses_with(gather.outputs[0], x)
    graph.remove(gather, safe=True)


def _fuse_residual_norms(graph: ir.Graph) -> None:
    """x + branch, then RMSNorm -> one operator that gives both."""
    for node in list(graph):
        add = node.inputs[0].producer() if node.op_type == "RMSNormalization" else None
        if add is None or add.op_type != "Add":
            continue
        tape = Tape()
        y, _, _, total = tape.op_multi_out(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, node.inputs[1]],
            {"epsilon": node.attributes["epsilon"].as_float()},
            domain=CONTRIB,
            num_outputs=4,
        )
        graph.insert_before(add, tape.nodes)
        _replace(node.outputs[0], y)
        ir.convenience.replace_all_uses_with(add.outputs[0], total)
        graph.remove([node, add], safe=True)


def _finish(model: ir.Model, weights: Weights) -> ir.Model:
    """Drops what nothing uses, gives every traced weight its data, and checks the graph."""
    graph = model.graph
    for value in weights.added:
        graph.register_initializer(value)
    ir.passes.common.IdentityEliminationPass()(model)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    for name, value in graph.initializers.items():
        if name not in weights.traced:
            continue
        dtype, shape = value.dtype, value.shape
        value.const_value = ir.LazyTensor(
            lambda name=name, dtype=dtype: ir.Tensor(weights.read(name).astype(dtype.numpy()), dtype=dtype, name=name),
            dtype=dtype,
            shape=shape,
            name=name,
        )
    ir.passes.common.TopologicalSortPass()(model)
    model.opset_imports[CONTRIB] = 1
    model.ir_version = 13
    return model


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Puts `new` where `old` was, under its name if that is the graph's."""
    if old.is_graph_output():
        old.name, new.name = None, old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def _named(values: Sequence[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)
