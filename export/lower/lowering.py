"""What every lowering offers: it writes a checkpoint's decoder and heads for an engine."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.runtime.catalogue import catalogue
from mgpt_edge.runtime.engines import engine_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig
    from mgpt_edge.export.quantise.precision import Activations, Precision

    Largest = Callable[[str], float]
    """Weight's name -> the largest magnitude of what its linear is given; precisions with fixed scales need it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is written.

    Args:
        checkpoint: where the weights come from.
        config: the checkpoint's own, or with fewer layers.
        precision: of the lowering's.
        capacity: positions of a cache, where its size stands in the graph.
        largest: of what the linears are given, where that was measured.
    """

    checkpoint: Checkpoint
    config: DecoderConfig
    precision: str
    capacity: int
    largest: Largest | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Files of a bundle that are written together.

    Args:
        bytes: of its weights, known before any is computed.
        write: (folder) -> writes them, one weight in memory at a time, and yields the bytes of each.
    """

    bytes: int
    write: Callable[[Path], Iterator[int]]


class Lowering(ABC):
    """A way to write checkpoints; engines name theirs.

    Attributes:
        name: as `EngineKind.lowering`.
        activations: what its products multiply weights with.
        emit: precision -> how a linear is written, for those it knows by itself.
        one_head: whether one head gives the logits of codes and of text.
    """

    name: str
    activations: Activations
    emit: Mapping[str, Any]
    one_head = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names of those it can write, in their order."""
        return tuple(name for name, kind in precisions().items() if name in self.emit or self.name in kind.emit)

    def emitter(self, precision: str) -> Any:
        """How a linear is written in a precision."""
        return self.emit[precision] if precision in self.emit else precisions()[precision].emit[self.name]

    def embedded(self, rows: Tensor, _: Precision) -> Tensor:
        """Rows of the embedding [n, hidden] as they are kept, float32."""
        return rows.float()

    @abstractmethod
    def parts(self, source: Source) -> dict[str, Part]:
        """The decoder and its heads, by the names of their files.

        Raises:
            InvalidRequest: sizes that the engine can't take.
        """

    def vq(self, model: ir.Model, read: Callable[[str], NDArray[np.generic]]) -> ir.Model:
        """A traced VQ graph, in place."""
        return lower_vq(model, read)

    def sizes(self, _checkpoint: Checkpoint, _precision: str) -> dict[str, int] | None:
        """Bytes of the files that hold the decoder's weights; None where only writing them tells."""
        return None


@cache
def lowerings() -> dict[str, Lowering]:
    """Returns every lowering by its name."""
    return catalogue(sys.modules[__package__], Lowering)


def lowering_of(engine: str) -> Lowering:
    """Returns the one that writes an engine's bundles.

    Raises:
        IncompatibleEngine: there is no such engine.
    """
    return lowerings()[engine_kind(engine).lowering]
