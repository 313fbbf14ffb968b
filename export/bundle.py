"""A checkpoint becomes a bundle: traced, lowered, written, and measured once before it is called done."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt_edge.export import trace
from mgpt_edge.export.checkpoint import to_array
from mgpt_edge.export.engines import ENGINES, NEED_STATISTICS, best_engine
from mgpt_edge.export.equalise import equalise, smooth
from mgpt_edge.export.forecast import describe, row_capacity
from mgpt_edge.export.golden import golden_logits
from mgpt_edge.export.graphfile import graph_bytes, write_graph
from mgpt_edge.export.invariance import width_invariant
from mgpt_edge.export.lower import cpu, cuda, native, tensorrt, tensorrt10
from mgpt_edge.export.lower.half import half_if_it_can
from mgpt_edge.export.lower.vq import lower_vq
from mgpt_edge.export.mixed import mix
from mgpt_edge.export.quantise import CALIBRATED, image_head_precision
from mgpt_edge.export.targets import TARGETS
from mgpt_edge.export.tokenizer import text_tokenizer
from mgpt_edge.runtime import manifest as m
from mgpt_edge.runtime.bundle import MANIFEST, Bundle, sha256, write_atomically
from mgpt_edge.runtime.errors import BundleError, InvalidRequest
from mgpt_edge.runtime.golden import FILE as GOLDEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics

    Progress = Callable[[str, int, int], None]
    """(what is being done, bytes written, bytes in all)"""

LOWERINGS = {"cpu": cpu, "cuda": cuda, "rtx": tensorrt, "tensorrt": tensorrt, "tensorrt10": tensorrt10}


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
        precision: one of `ENGINES[engine]`.
        engine: one of `ENGINES`; unless given, the first that has the precision.
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
    with _temporary(out) as folder:
        graphs = _vq_graphs(checkpoint, narrow=precision in m.HALF_VQ, tensorrt=engine in TARGETS)
        if engine == "tensorrt10":
            graphs = {name: tensorrt10.split_group_norms(graph) for name, graph in graphs.items()}
        if engine != "native":
            graphs = _decoder_graphs(checkpoint, precision, engine, target_size, statistics) | graphs
        parts = {name: write_graph(graph, folder, name) for name, graph in graphs.items()}
        total, done = sum(map(graph_bytes, graphs.values())), 0
        if engine == "native":
            parts["decoder"] = native.write_decoder(checkpoint, checkpoint.config, precision, folder)
            total += native.decoder_bytes(checkpoint, precision)
        for name, part in parts.items():
            for count in part:
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
    if engine not in ENGINES:
        msg = f"unknown engine {engine!r}; this version exports for: {', '.join(ENGINES)}"
        raise InvalidRequest(msg)
    if precision not in ENGINES[engine]:
        msg = f"unknown precision {precision!r}; engine {engine} has: {', '.join(ENGINES[engine])}"
        raise InvalidRequest(msg)
    if precision in NEED_STATISTICS and statistics is None:
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
    if precision == "w8a8":
        return smooth(checkpoint, statistics)
    if precision in CALIBRATED:
        return checkpoint, statistics
    if precision == "mixed":
        return mix(equalise(checkpoint, statistics, "int4", engine), statistics), None
    return equalise(checkpoint, statistics, precision, engine), None


@contextlib.contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or vanishes."""
    if out.exists():
        msg = f"{out} exists already; give another place with -o, or remove it"
        raise BundleError(msg)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        msg = f"can't write to {out.parent}: {error.strerror or error}"
        raise BundleError(msg) from error
    try:
        folder.chmod(0o755)
        yield folder
        folder.rename(out)
    except OSError as error:
        msg = f"can't write {out}: {error.strerror or error}; nothing was left behind"
        raise BundleError(msg) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decoder_graphs(
    checkpoint: Checkpoint, precision: str, engine: str, target_size: int, statistics: Statistics | None
) -> dict[str, ir.Model]:
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    traced = trace.trace_decoder(config, checkpoint.norm_groups)
    lower = LOWERINGS[engine]
    if engine in TARGETS:
        largest = statistics and statistics.largest_of
        decoder = lower.lower_decoder(
            traced, checkpoint.array, precision, row_capacity(checkpoint, target_size), largest
        )
        lower_head = partial(lower.lower_head, largest=statistics and (lambda _: largest("lm_head.weight")))
    else:
        lower_head, decoder = lower.lower_head, lower.lower_decoder(traced, checkpoint.array, precision)

    def head(start: int, stop: int, precision: str) -> ir.Model:
        graph = trace.trace_head(config.hidden_size, stop - start)
        return lower_head(graph, lambda _: checkpoint.array("lm_head.weight")[start:stop], precision)

    image = head(*vocabulary.code_range, image_head_precision(precision, engine))
    return {"decoder": decoder, "head_image": image, "head_text": head(0, vocabulary.size, precision)}


def _vq_graphs(checkpoint: Checkpoint, *, narrow: bool, tensorrt: bool) -> dict[str, ir.Model]:
    graphs: dict[str, ir.Model] = {}
    vq = checkpoint.vq
    if vq is not None:

        def read_vq(name: str) -> NDArray[np.generic]:
            array = to_array(vq.load(name.removeprefix("module.")))
            return half_if_it_can(array) if narrow else array

        graphs["vq_encoder"] = lower_vq(trace.trace_vq_encoder(vq.config), read_vq, tensorrt=tensorrt)
        if vq.has_decoder:
            graphs["vq_decoder"] = lower_vq(trace.trace_vq_decoder(vq.config), read_vq, tensorrt=tensorrt)
    return graphs


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
