"""A bundle's graphs compiled to engines of TensorRT. TensorRT for RTX needs no GPU for it, and uses none."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mgpt_edge.export import compiler
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.export.targets import target_of
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.bundle.folder import MANIFEST, Bundle, sha256
from mgpt_edge.runtime.bundle.manifest import FileEntry, Plan
from mgpt_edge.runtime.engines import compiler_of, engine_kind
from mgpt_edge.runtime.engines.gpu.plans import part_names, parts_of
from mgpt_edge.runtime.engines.gpu.tensorrt import SEQUENCES
from mgpt_edge.runtime.errors import BundleError, IncompatibleEngine, InvalidRequest, OutOfMemory
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mgpt_edge.export.compiler import Profile
    from mgpt_edge.export.targets import Target
    from mgpt_edge.runtime.bundle.manifest import Manifest

    Progress = Callable[[str, int, int], None]
    """(phase, steps done, steps in all)"""

GRAPHS = ("decoder", "head_image", "head_text", "vq_decoder", "vq_encoder")
FIXED_BYTES = 900 << 20  # TensorRT itself, measured with the smallest model
BYTES_PER_GRAPH_BYTE = 3
EMBEDDING_BYTES = 2  # as published checkpoints have them


def forecast_bytes(bundle: Bundle) -> int:
    """Memory that compiling takes at its peak, that of the largest graph, if nothing is cut.

    Raises:
        BundleError: the bundle has no graphs for TensorRT.
    """
    if engine_kind(bundle.manifest.engine).compiler is None:
        msg = (
            f"{bundle.folder} was exported for engine {bundle.manifest.engine!r}, which TensorRT can't compile; "
            "export the checkpoint again: mgpt export CHECKPOINT --engine rtx --precision int4 -o BUNDLE"
        )
        raise BundleError(msg)
    return max(_need(bundle, graph) for graph in _graphs(bundle))


def engines_that_fit(bundle: Bundle, graph: str, free: int) -> int:
    """Into how few engines a graph is cut so that compiling fits the bytes that are free; only the decoder can be.

    Raises:
        OutOfMemory: even one a layer is too much.
    """
    most = bundle.manifest.dimensions.layers if graph == "decoder" else 1
    for engines in range(1, most + 1):
        if _need(bundle, graph, engines) <= free:
            return engines
    msg = (
        f"compiling {graph} of {bundle.folder} takes {machine.mebibytes(_need(bundle, graph, most))} at least, "
        f"{machine.mebibytes(free)} are free; {target_of(bundle.manifest.engine).short_of_memory}"
    )
    raise OutOfMemory(msg)


def _need(bundle: Bundle, graph: str, engines: int = 1) -> int:
    """Memory for the largest of the parts: the first one, which holds the tokens' embeddings too."""
    d, size = bundle.manifest.dimensions, sum(bundle.manifest.files[file].bytes for file in _files(bundle, graph))
    if engines > 1:
        embeddings = min(EMBEDDING_BYTES * bundle.manifest.vocabulary.size * d.hidden_size, size)
        size = embeddings + (size - embeddings) * math.ceil(d.layers / engines) // d.layers
    return FIXED_BYTES + BYTES_PER_GRAPH_BYTE * size


def profiles(manifest: Manifest, graph: str) -> tuple[Profile, Profile]:
    """The sizes that a graph is compiled for: one alone, which is what it mostly runs with, and all.

    A pass of one token a row has kernels of its own; a VQ model's size of its own is the square it was trained for.
    """
    if graph == "decoder":
        rows, widest = {"rows": (SEQUENCES,) * 3}, compiler_of(manifest.engine).widest
        return {**rows, "width": (1, 1, 1)}, {**rows, "width": (2, 16, widest)}
    if graph.startswith("head_"):
        return {"n": (SEQUENCES,) * 3}, {"n": (1, 32, SEQUENCES * compiler_of(manifest.engine).widest)}
    stride = manifest.pictures.stride
    usual = manifest.pictures.target_size // stride
    largest = max(usual, *(side // stride for size in manifest.pictures.trained_sizes for side in size))
    return _sides((usual,) * 3, stride), _sides((1, usual, largest), stride)


def _sides(codes: tuple[int, int, int], stride: int) -> Profile:
    """Sizes of a side in codes, and in pixels as the trace calls them."""
    low, usual, high = codes
    pixels = (low * stride, usual * stride, high * stride)
    return {"h": codes, "w": codes, f"{stride}*h": pixels, f"{stride}*w": pixels}


def build_plans(bundle: Bundle, sms: Sequence[int], progress: Progress = lambda *_: None) -> Bundle:
    """Compiles each graph to one plan for all GPUs, into the bundle; what is there already is kept.

    Where memory does not hold the compiler of the whole decoder, it becomes several plans of some layers each.

    Args:
        bundle: of an engine with plans; every one is recorded in its manifest as soon as it is written.
        sms: for engine `rtx` compute capabilities without the point, such as 89; none for others, which are compiled
            for this machine's GPU.
        progress: told of each step.

    Raises:
        InvalidRequest: TensorRT for RTX has no such compute capability, or the bundle's precision is not for it.
        IncompatibleEngine: TensorRT is not installed, in another version than the engine is for, or compiles something
            else than what was asked for.
        BundleError: no graphs for TensorRT, a damaged one, or a folder that can't be written.
        OutOfMemory: compiling takes more than is free.
    """
    forecast_bytes(bundle)  # refuses other engines' bundles
    target = target_of(bundle.manifest.engine)(bundle.manifest.engine, sms)
    _check_precision(bundle, target.sms)
    for graph in _graphs(bundle):
        whole = Plan(graph=graph, sms=target.sms, tensorrt=target.version, key=_key(bundle, graph, target))
        bundle = _build(bundle, whole, target, progress)
    return bundle


def _check_precision(bundle: Bundle, sms: Sequence[int]) -> None:
    precision = bundle.manifest.precision
    least = precisions()[precision].least_sm
    older = [sm for sm in sms if sm < least]
    if older:
        msg = (
            f"{bundle.folder} is in {precision}, which GPUs multiply from SM {least} on, not SM "
            f"{', '.join(map(str, older))}; for those export with --precision int8 or int4"
        )
        raise InvalidRequest(msg)


def _build(bundle: Bundle, whole: Plan, target: Target, progress: Progress) -> Bundle:
    graph = whole.graph
    there = {plan.graph for plan in bundle.manifest.plans.values() if replace(plan, graph=graph) == whole}
    for part in there:
        name = _file_name(bundle, replace(whole, graph=part))
        bundle.check_size(name, bundle.manifest.files[name])
    parts = parts_of(graph, there)
    if not parts:
        engines = engines_that_fit(bundle, graph, machine.available_bytes())
        begun = max((int(part.rpartition("of")[2]) for part in there), default=1)  # goes on, if it fits
        parts = part_names(graph, max(engines, begun))
        for file in _files(bundle, graph):
            bundle.check_size(file, bundle.manifest.files[file])
            bundle.check_hash(file, bundle.manifest.files[file])
        for name, path, attentions in _pieces(bundle, graph, len(parts)):
            if name not in there:
                data = _compile(target, path, profiles(bundle.manifest, graph), name, attentions, progress)
                bundle = _record(bundle, replace(whole, graph=name), data)
                del data  # as large as the part, and the next one needs memory
    return _without_others(bundle, whole, parts)


def _compile(
    target: Target, path: Path, sizes: Sequence[Profile], name: str, attentions: int, progress: Progress
) -> memoryview:
    return compiler.compile_graph(
        target,
        path,
        sizes,
        attentions=attentions,
        progress=lambda phase, done, total: progress(f"{name}: {phase}", done, total),
    )


def _pieces(bundle: Bundle, graph: str, count: int) -> Iterator[tuple[str, Path, int]]:
    """Name, file and calls of attention of what a graph is compiled as; files of parts are there for one step each."""
    path = bundle.folder / f"{graph}.onnx"
    if count == 1:
        yield graph, path, bundle.manifest.dimensions.layers if graph == "decoder" else 0
        return
    try:
        from mgpt_edge.export.cut import cut, layers_of  # a board that compiles graphs whole needs no onnx
    except ImportError as error:
        msg = f"cutting {path} into {count} engines needs onnx ({error}): pip install onnx"
        raise IncompatibleEngine(msg) from error
    for name, part in zip(part_names(graph, count), cut(path, count), strict=True):
        piece = bundle.folder / f"{name}.onnx"  # beside the weights that it names
        try:
            write_atomically(piece, part.SerializeToString())
            yield name, piece, len(layers_of(part))
        finally:
            piece.unlink(missing_ok=True)


def _record(bundle: Bundle, plan: Plan, data: memoryview) -> Bundle:
    name = _file_name(bundle, plan)
    path = bundle.folder / name
    try:
        write_atomically(path, data)
        entry = FileEntry(bytes=path.stat().st_size, sha256=sha256(path))
    except OSError as error:
        raise _unwritable(path, error) from error
    files, plans = bundle.manifest.files | {name: entry}, bundle.manifest.plans | {name: plan}
    return _commit(bundle, replace(bundle.manifest, files=files, plans=plans))


def _without_others(bundle: Bundle, whole: Plan, parts: Sequence[str]) -> Bundle:
    """Once a graph is complete, what was compiled for the same GPUs before goes."""
    old = {
        name
        for name, plan in bundle.manifest.plans.items()
        if (plan.graph.partition(".")[0], plan.sms) == (whole.graph, whole.sms)
        and (plan.key != whole.key or plan.graph not in parts)
    }
    if not old:
        return bundle
    files = {name: entry for name, entry in bundle.manifest.files.items() if name not in old}
    plans = {name: plan for name, plan in bundle.manifest.plans.items() if name not in old}
    bundle = _commit(bundle, replace(bundle.manifest, files=files, plans=plans))
    for name in old:
        (bundle.folder / name).unlink(missing_ok=True)
    return bundle


def _commit(bundle: Bundle, manifest: Manifest) -> Bundle:
    path = bundle.folder / MANIFEST
    try:
        write_atomically(path, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        raise _unwritable(path, error) from error
    return Bundle(bundle.folder, manifest)


def _unwritable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"can't write {path}: {error.strerror or error}; copy the bundle to a place that can be written")


def _file_name(bundle: Bundle, plan: Plan) -> str:
    return f"{bundle.manifest.engine}.{plan.graph}.sm{'-'.join(map(str, plan.sms))}.plan"


def _key(bundle: Bundle, graph: str, target: Target) -> str:
    files = {file: asdict(bundle.manifest.files[file]) for file in _files(bundle, graph)}
    said = [files, target.sms, target.version, profiles(bundle.manifest, graph)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _graphs(bundle: Bundle) -> list[str]:
    """A checkpoint without VQ files has none of its graphs."""
    return [graph for graph in GRAPHS if not graph.startswith("vq_") or f"{graph}.onnx" in bundle.manifest.files]


def _files(bundle: Bundle, graph: str) -> list[str]:
    bundle.path(f"{graph}.onnx")
    return [name for name in (f"{graph}.onnx", f"{graph}.data") if name in bundle.manifest.files]
