"""Measures whether a token's hidden state has the same bits in a pass of any width."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from mgpt_edge.export.forecast import dimensions
from mgpt_edge.export.graphfile import write_graph
from mgpt_edge.export.lower import cpu, native
from mgpt_edge.export.trace import trace_decoder
from mgpt_edge.runtime.engines.native import FILE, load_decoder
from mgpt_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig

    Run = Callable[[NDArray[np.int64], int], NDArray[np.float32]]
    """(tokens, width of the passes) -> what comes out for each token."""

LAYERS = 2  # kernels are chosen by shape, so two layers behave as all do, and fit in memory
TOKENS = 192
WIDTHS = (1, 2, 5, 16)


def width_invariant(checkpoint: Checkpoint, precision: str, engine: str) -> bool:
    """Runs the first layers over random tokens in passes of several widths and compares the bits."""
    if engine not in {"native", "cpu"}:
        return False  # only a GPU could tell
    config = replace(checkpoint.config, num_layers=min(LAYERS, checkpoint.config.num_layers))
    low, high = checkpoint.vocabulary.code_range
    tokens = np.random.default_rng(0).integers(low, high, TOKENS)
    hidden = _by_native if engine == "native" else _by_onnxruntime
    with tempfile.TemporaryDirectory() as folder:
        run = hidden(checkpoint, config, precision, Path(folder))
        whole = run(tokens, TOKENS)
        return all(np.array_equal(whole, run(tokens, width)) for width in WIDTHS)


def _by_native(checkpoint: Checkpoint, config: DecoderConfig, precision: str, folder: Path) -> Run:
    for _ in native.write_decoder(checkpoint, config, precision, folder):
        pass
    decoder = load_decoder(folder / FILE, dimensions(config), config.vocab_size, threads=1)
    decoder.rotate(*rotary_tables(TOKENS, config.head_dim, config.rope_theta))

    def run(tokens: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        cache, logits = decoder.cache([len(tokens)]), np.empty((len(tokens), config.vocab_size), np.float32)
        for start in range(0, len(tokens), width):
            part, out = tokens[start : start + width], logits[start : start + width]
            decoder.forward(cache, np.array([[0, len(part), len(part)]]), part, 0, config.vocab_size, out=out)
        return logits

    return run


def _by_onnxruntime(checkpoint: Checkpoint, config: DecoderConfig, precision: str, folder: Path) -> Run:
    graph = trace_decoder(config, checkpoint.norm_groups)
    graph = cpu.lower_decoder(graph, checkpoint.array, precision)
    for _ in write_graph(graph, folder, "decoder"):
        pass
    session = ort.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    tables = rotary_tables(TOKENS + 1, config.head_dim, config.rope_theta)
    return lambda tokens, width: _hidden(session, tokens, width, tables)


def _hidden(
    session: ort.InferenceSession,
    tokens: NDArray[np.int64],
    width: int,
    tables: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Hidden states of the conditional row, fed `width` tokens a pass; the other row idles."""
    capacity = len(tables[0])
    inputs = {value.name: value.shape for value in session.get_inputs()}
    cache = {
        name: np.zeros([size if isinstance(size, int) else capacity for size in shape], np.float32)
        for name, shape in inputs.items()
        if name.startswith("past")
    }
    hidden = []
    for start in range(0, len(tokens), width):
        part = tokens[start : start + width]
        end = start + len(part)
        feed = {"cos": tables[0], "sin": tables[1], "tokens.0": part[None], "tokens.1": np.zeros((1, 1), np.int64)}
        for row, length in enumerate((end, 1)):
            feed |= {f"seqlen.{row}": np.array([length - 1], np.int32), f"total.{row}": np.array(length, np.int32)}
        states, *present = session.run(None, feed | cache)
        names = (value.name.replace("present", "past") for value in session.get_outputs()[1:])
        cache = dict(zip(names, present, strict=True))
        hidden.append(states[0, : len(part)])
    return np.concatenate(hidden)
