"""Measures whether a token's logits have the same bits in a pass of any width."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.export.forecast import describe
from mgpt_edge.export.lower.lowering import Source, lowering_of
from mgpt_edge.runtime.bundle.folder import Bundle
from mgpt_edge.runtime.bundle.manifest import FileEntry
from mgpt_edge.runtime.engines import engine_kind, load_engine
from mgpt_edge.runtime.engines.base import Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.runtime.engines.base import Engine

LAYERS = 2  # kernels are chosen by shape, so two layers behave as all do, and fit in memory
TOKENS = 192
WIDTHS = (1, 2, 5, 16)


def width_invariant(checkpoint: Checkpoint, precision: str, engine: str) -> bool:
    """Returns whether the engine gives the first layers' logits of random tokens in the same bits at several widths.

    Only a GPU could tell of an engine that runs on one: then the answer is no.
    """
    if engine_kind(engine).on_gpu:
        return False
    low, high = checkpoint.vocabulary.code_range
    tokens = np.random.default_rng(0).integers(low, high, TOKENS).tolist()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_engine(_first_layers(checkpoint, precision, engine, Path(folder)), threads=1)
        whole = _logits(loaded, tokens, TOKENS)
        return all(np.array_equal(whole, _logits(loaded, tokens, width)) for width in WIDTHS)


def _first_layers(checkpoint: Checkpoint, precision: str, engine: str, folder: Path) -> Bundle:
    """A bundle of them, without a VQ model."""
    layers = min(LAYERS, checkpoint.config.num_layers)
    config = replace(checkpoint.config, num_layers=layers)
    source = Source(checkpoint=checkpoint, config=config, precision=precision, capacity=TOKENS)
    for part in lowering_of(engine).parts(source).values():
        for _ in part.write(folder):
            pass
    files = {path.name: FileEntry(bytes=path.stat().st_size, sha256="") for path in folder.iterdir()}
    whole = describe(checkpoint, precision, files, engine=engine, target_size=0, width_invariant=False)
    return Bundle(folder, replace(whole, dimensions=replace(whole.dimensions, layers=layers)))


def _logits(engine: Engine, tokens: list[int], width: int) -> NDArray[np.float32]:
    """Of every token [tokens, vocabulary], fed `width` a pass."""
    rows = engine.open((len(tokens), 0))
    parts = (tokens[start : start + width] for start in range(0, len(tokens), width))
    return np.concatenate([rows.forward([Segment(0, part, len(part))], "text")[0].copy() for part in parts])
