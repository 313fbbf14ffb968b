"""A decoder's graph in parts, for a machine whose memory does not hold the compiler of the whole.

Between two layers nothing but the residual stream goes on, so a part ends with it and the next begins with it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx

from mgpt_edge.runtime.engines.gpu.plans import RESIDUAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CACHED = re.compile(r"(?:present|fresh)\.(\d+)\.")  # outputs that belong to a layer


def cut(path: Path, parts: int) -> Iterator[onnx.ModelProto]:
    """A lowered decoder cut into parts of as equal numbers of layers as can be, in order.

    Args:
        path: of the file that `lower.tensorrt` or `lower.tensorrt10` wrote; the parts name the same weights beside it.
        parts: from 1 to the number of layers.

    Yields:
        A graph of its own, which takes `residual.{layer}` in place of the tokens' embeddings and leaves the next one's
        [rows, width, hidden], float32 like the whole graph's `hidden`, which the last one leaves.
    """
    model = onnx.load(path, load_external_data=False)
    graph, layers = model.graph, len(layers_of(model))
    firsts = [layers * part // parts for part in range(parts)]
    values = {first: _residual_into(graph, first) for first in firsts[1:]}
    _rename(graph, {name: f"{RESIDUAL}{first}" for first, name in values.items()})
    for first, end in zip(firsts, [*firsts[1:], layers], strict=True):
        outputs = [value for value in graph.output if first <= _layer(value.name) < end]
        yield _part(model, first, [_residual(graph, end) if end < layers else _hidden(graph), *outputs])


def layers_of(model: onnx.ModelProto) -> set[int]:
    """Whose caches a decoder, or a part of one, updates."""
    return {_layer(value.name) for value in model.graph.output} - {-1}


def _layer(output: str) -> int:
    found = CACHED.match(output)
    return int(found[1]) if found else -1


def _residual_into(graph: onnx.GraphProto, layer: int) -> str:
    """The last value before a layer that all that follows hangs on."""
    last = ""
    for node, alone in _sweep(graph):
        if any(_layer(name) == layer for name in node.output):
            return last
        last = alone or last
    msg = f"the graph has no cache of layer {layer}"
    raise ValueError(msg)


def _sweep(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Each node between tokens and hidden states, and the value behind it if everything later hangs on that alone."""
    reached, path = {"tokens"}, []
    for node in graph.node:
        if node.op_type != "Shape" and not reached.isdisjoint(node.input):  # a shape is known without the values
            reached.update(node.output)
            path.append(node)
    readers: dict[str, int] = {"hidden": 1}
    for node in reversed(path):
        if any(readers.get(name, 0) for name in node.output):
            for name in set(node.input) & reached:
                readers[name] = readers.get(name, 0) + 1
    live = {"tokens"}
    for node in path:
        if any(readers.get(name, 0) for name in node.output):
            for name in set(node.input) & reached:
                readers[name] -= 1
                if not readers[name]:
                    live.discard(name)
            live.update(name for name in node.output if readers.get(name, 0))
            yield node, next(iter(live)) if len(live) == 1 else ""


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


def _part(model: onnx.ModelProto, first: int, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """What leads to the outputs, back to the stream into the first layer."""
    graph, begin = model.graph, f"{RESIDUAL}{first}"
    needed, nodes = {value.name for value in outputs}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output) and begin not in node.output:
            needed.update(node.input)
            nodes.append(node)
    given = [_residual(graph, first)] if first else []
    part = onnx.helper.make_graph(
        nodes[::-1],
        graph.name,
        [*given, *(value for value in graph.input if value.name in needed)],
        outputs,
        [value for value in graph.initializer if value.name in needed],
    )
    return onnx.helper.make_model(
        part, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )


def _hidden(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    return next(value for value in graph.output if value.name == "hidden")


def _residual(graph: onnx.GraphProto, layer: int) -> onnx.ValueInfoProto:
    """The residual stream into a layer: of the hidden states' type and shape."""
    value = onnx.ValueInfoProto()
    value.CopyFrom(_hidden(graph))
    value.name = f"{RESIDUAL}{layer}"
    return value
