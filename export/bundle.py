"""A checkpoint becomes a bundle: traced, lowered, written, and measured once before it is called done."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from mgpt_edge.export import trace
from mgpt_edge.export.checkpoint import to_array
from mgpt_edge.export.engines import best_engine, engines
from mgpt_edge.export.equalise import equalise
from mgpt_edge.export.forecast import describe, half_vq, sequence_capacity
from mgpt_edge.export.golden import golden_logits
from mgpt_edge.export.invariance import width_invariant
from mgpt_edge.export.lower.graphs import graph_part
from mgpt_edge.export.lower.half import half_if_it_can
from mgpt_edge.export.lower.lowering import Source, lowering_of
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.export.tokenizer import text_tokenizer
from mgpt_edge.runtime.bundle import manifest as m
from mgpt_edge.runtime.bundle.folder import MANIFEST, Bundle, sha256
from mgpt_edge.runtime.errors import BundleError, InvalidRequest
from mgpt_edge.runtime.files import Occupied, new_folder, write_atomically
from mgpt_edge.runtime.golden import FILE as GOLDEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.lower.lowering import Lowering, Part
    from mgpt_edge.export.statistics import Statistics

    Progress = Callable[[str, int, int], None]
    """(what is being done, bytes written, bytes in all)"""


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    precision: str = "int8",
    engine: str | None = None,
    target_size: int | None = None,
    statistics: Statistics | None = None,
    progress: Progress = lambda *_: None,
) -> Bundle:
    """Writes a bundle of one precision for one engine.

    Weights are read, packed and written one at a time. Everything is written beside `out` and renamed
    at the end: interrupted, it leaves nothing.

    Args:
        checkpoint: opened.
        out: folder to make; it must not exist.
        precision: one of `engines()[engine]`.
        engine: one of `engines()`; unless given, the first that has the precision.
        target_size: side in pixels it was trained for, where the checkpoint does not say.
        statistics: of what the linears are given. `fp8` and `nvfp4` take their scales from them; for other precisions
            the weights are rescaled by them before they are rounded, `w8a8` does both, and `mixed` learns from them
            which linears need 8 bits.
        progress: told after each weight.

    Raises:
        InvalidRequest: an unknown precision or engine, or no target size.
        CheckpointError: a weight cannot be read or packed.
        BundleError: `out` exists or cannot be written.
    """
    engine = engine or best_engine(precision)
    _check_request(checkpoint, precision, engine, target_size, statistics)
    target_size = target_size or checkpoint.defaults.target_size
    if statistics is not None:
        progress("rescaling", 0, 1)
        checkpoint, statistics = rescaled(checkpoint, statistics, precision, engine)
    lowering, largest = lowering_of(engine), None if statistics is None else statistics.largest_of
    source = Source(
        checkpoint=checkpoint,
        config=checkpoint.config,
        precision=precision,
        capacity=sequence_capacity(checkpoint, target_size),
        largest=largest,
    )
    with _temporary(out) as folder:
        parts = lowering.parts(source) | _vq_parts(checkpoint, lowering, half=half_vq(precision))
        total, done = sum(part.bytes for part in parts.values()), 0
        for name, part in parts.items():
            for count in part.write(folder):
                done += count
                progress(name, done, total)
        (folder / "tokenizer.json").write_text(text_tokenizer(checkpoint.tokenizer_json), encoding="utf-8")
        progress("golden logits", total, total)
        golden = golden_logits(checkpoint, precision, engine, statistics)
        (folder / GOLDEN).write_text(json.dumps(golden.to_json()), encoding="utf-8")
        manifest = describe(
            checkpoint,
            precision,
            _files(folder),
            engine=engine,
            target_size=target_size,
            width_invariant=width_invariant(checkpoint, precision, engine),
        )
        write_atomically(folder / MANIFEST, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())
    return Bundle.peek(out)


def _check_request(
    checkpoint: Checkpoint, precision: str, engine: str, target_size: int | None, statistics: Statistics | None
) -> None:
    known = engines()
    if engine not in known:
        msg = f"unknown engine {engine!r}; this version exports for: {', '.join(known)}"
        raise InvalidRequest(msg)
    if precision not in known[engine]:
        msg = f"unknown precision {precision!r}; engine {engine} has: {', '.join(known[engine])}"
        raise InvalidRequest(msg)
    if precisions()[precision].statistics and statistics is None:
        msg = (
            f"{precision} depends on what the layers are given, so it needs statistics: mgpt calibrate "
            f"{checkpoint.source} --data RECORDS -o FILE, then --statistics FILE; int8 needs none"
        )
        raise InvalidRequest(msg)
    if target_size is None and checkpoint.defaults.target_size is None:
        msg = "nothing says which picture size this checkpoint was trained for; give --target-size, such as 768"
        raise InvalidRequest(msg)


def rescaled(
    checkpoint: Checkpoint, statistics: Statistics, precision: str, engine: str
) -> tuple[Checkpoint, Statistics | None]:
    """The weights that are rounded, and what scales of activations are taken from."""
    rescale = precisions()[precision].rescale
    if rescale is None:
        return equalise(checkpoint, statistics, precision, engine), None
    return rescale(checkpoint, statistics, engine)


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end, or vanishes."""
    try:
        with new_folder(out) as folder:
            yield folder
    except Occupied as error:
        msg = f"{error}; give another place with -o, or remove it"
        raise BundleError(msg) from error
    except OSError as error:
        msg = f"can't write {out}: {error.strerror or error}; nothing was left behind"
        raise BundleError(msg) from error


def _vq_parts(checkpoint: Checkpoint, lowering: Lowering, *, half: bool) -> dict[str, Part]:
    vq = checkpoint.vq
    if vq is None:
        return {}

    def read(name: str) -> NDArray[np.generic]:
        array = to_array(vq.load(name.removeprefix("module.")))
        return half_if_it_can(array) if half else array

    graphs = {"vq_encoder": lowering.vq(trace.trace_vq_encoder(vq.config), read)}
    if vq.has_decoder:
        graphs["vq_decoder"] = lowering.vq(trace.trace_vq_decoder(vq.config), read)
    return {name: graph_part(graph, name) for name, graph in graphs.items()}


def _files(folder: Path) -> dict[str, m.FileEntry]:
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {path.name: m.FileEntry(bytes=path.stat().st_size, sha256=sha256(path)) for path in paths}


def no_decoder(checkpoint: Checkpoint) -> str | None:
    """What a user must know of a checkpoint that cannot draw by itself."""
    if checkpoint.vq is None:
        return f"{checkpoint.source} has no VQ files: the bundle will not draw nor read pictures; give them with --vq"
    if not checkpoint.vq.has_decoder:
        return f"{checkpoint.source} has the VQ encoder only: the bundle reads pictures but draws none; give --vq"
    return None
