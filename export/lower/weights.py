"""The arrays of a graph, computed one at a time when they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from onnx_ir.tape import Tape


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
        self.functions: dict[ir.OperatorIdentifier, ir.Function] = {}
        self.constants: dict[tuple[np.dtype[np.generic], tuple[int, ...], bytes], ir.Value] = {}

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

    def define(self, function: ir.Function) -> None:
        """Gives the file the meaning of an operator that is not ONNX's."""
        self.functions[function.identifier()] = function

    def constant(self, array: NDArray[np.generic] | np.generic | list[int]) -> ir.Value:
        """A small array, whole in the graph; equal ones are one."""
        array = np.asarray(array)
        key = array.dtype, array.shape, array.tobytes()
        if key not in self.constants:
            name = f"constant.{len(self.constants)}"
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            self.constants[key] = value
            self.added.append(value)
        return self.constants[key]


def replace(old: ir.Value, new: ir.Value) -> None:
    """Puts `new` where `old` was; a graph's output keeps its name, and its type, which TensorRT infers of none."""
    if old.is_graph_output():
        old.name, new.name = None, old.name
        new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def finish(model: ir.Model, weights: Weights, opsets: dict[str, int], ir_version: int) -> ir.Model:
    """Drops what nothing uses, gives every traced weight its data, and orders the graph."""
    graph = model.graph
    model.functions.update(weights.functions)
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
    model.opset_imports.clear()  # the trace's own attention is gone
    model.opset_imports.update(opsets)
    model.ir_version = ir_version
    return model


def name_nodes(tape: Tape, prefix: str) -> None:
    """Nodes are called by the weights or the layer they belong to: profilers print those names."""
    for index, node in enumerate(tape.nodes):
        node.name = f"{prefix}.{node.op_type}.{index}"


def named(values: Sequence[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)
