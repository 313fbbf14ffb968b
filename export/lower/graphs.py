"""Lowerings that write ONNX graphs: the decoder's, and a head each for codes and for text."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from mgpt_edge.export import trace
from mgpt_edge.export.graphfile import graph_bytes, write_graph
from mgpt_edge.export.lower.lowering import Lowering, Part
from mgpt_edge.export.quantise.precision import precisions

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from mgpt_edge.export.lower.lowering import Largest, Source


class GraphLowering(Lowering):
    """Traces once; `decoder` and `head` rewrite what was traced for one engine."""

    @abstractmethod
    def decoder(self, graph: ir.Model, source: Source) -> ir.Model:
        """The traced decoder, in place."""

    @abstractmethod
    def head(
        self, graph: ir.Model, read: Callable[[str], NDArray[np.generic]], precision: str, largest: Largest | None
    ) -> ir.Model:
        """A traced head, in place; `read("weight")` gives its rows of the vocabulary."""

    def parts(self, source: Source) -> dict[str, Part]:
        vocabulary, precision = source.checkpoint.vocabulary, source.precision
        traced = trace.trace_decoder(source.config, source.checkpoint.norm_groups)
        graphs = {
            "decoder": self.decoder(traced, source),
            "head_image": self._head(source, *vocabulary.code_range, precisions()[precision].image_head or precision),
            "head_text": self._head(source, 0, vocabulary.size, precision),
        }
        return {name: graph_part(graph, name) for name, graph in graphs.items()}

    def _head(self, source: Source, start: int, stop: int, precision: str) -> ir.Model:
        """The head over the ids [start, stop)."""
        weight = "lm_head.weight"
        graph = trace.trace_head(source.config.hidden_size, stop - start)
        largest = None if source.largest is None else partial(_of_one, source.largest, weight)
        return self.head(graph, lambda _: source.checkpoint.array(weight)[start:stop], precision, largest)


def graph_part(graph: ir.Model, name: str) -> Part:
    """A graph as a part of a bundle."""
    return Part(graph_bytes(graph), lambda folder: write_graph(graph, folder, name))


def _of_one(largest: Largest, weight: str, _: str) -> float:
    return largest(weight)
