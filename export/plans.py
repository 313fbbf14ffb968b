"""A bundle's graphs compiled to engines of TensorRT. TensorRT for RTX needs no GPU for it, and uses none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mgpt_edge.export import compiler
from mgpt_edge.export.targets import TARGETS
from mgpt_edge.runtime import memory
from mgpt_edge.runtime.bundle import MANIFEST, Bundle, sha256, write_atomically
from mgpt_edge.runtime.engines.tensorrt import ROWS, WIDEST
from mgpt_edge.runtime.errors import BundleError, InvalidRequest, OutOfMemory
from mgpt_edge.runtime.manifest import FileEntry, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mgpt_edge.export.compiler import Profile
    from mgpt_edge.export.targets import Target
    from mgpt_edge.runtime.manifest import Manifest

    Progress = Callable[[str, int, int], None]
    """(phase, steps done, steps in all)"""

GRAPHS = ("decoder", "head_image", "head_text", "vq_decoder", "vq_encoder")
FIXED_BYTES = 900 << 20  # TensorRT itself, measured with the smallest model
BYTES_PER_GRAPH_BYTE = 3
LEAST_SM = {"fp8": 89, "nvfp4": 120}
"""The first GPUs that multiply in a precision."""


def forecast_bytes(bundle: Bundle) -> int:
    """Memory that compiling takes at its peak: that of the largest graph.

    Raises:
        BundleError: the bundle has no graphs for TensorRT.
    """
    if bundle.manifest.engine not in TARGETS:
        msg = (
            f"{bundle.folder} was exported for engine {bundle.manifest.engine!r}, which TensorRT can't compile; "
            "export the checkpoint again: mgpt export CHECKPOINT --engine rtx --precision int4 -o BUNDLE"
        )
        raise BundleError(msg)
    return FIXED_BYTES + BYTES_PER_GRAPH_BYTE * max(_graph_bytes(bundle, graph) for graph in _graphs(bundle))


def profiles(manifest: Manifest, graph: str) -> tuple[Profile, Profile]:
    """The sizes that a graph is compiled for: one alone, which is what it mostly runs with, and all.

    A pass of one token a row has kernels of its own; a VQ model's size of its own is the square it was trained for.
    """
    if graph == "decoder":
        rows, widest = {"rows": (ROWS,) * 3}, WIDEST[manifest.engine]
        return {**rows, "width": (1, 1, 1)}, {**rows, "width": (2, 16, widest)}
    if graph.startswith("head_"):
        return {"n": (ROWS,) * 3}, {"n": (1, 32, ROWS * WIDEST[manifest.engine])}
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

    Args:
        bundle: of an engine of `TARGETS`; every plan is recorded in its manifest as soon as it is written.
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
    need, engine = forecast_bytes(bundle), bundle.manifest.engine
    target = TARGETS[engine](engine, sms)
    _check_precision(bundle, target.sms)
    for graph in _graphs(bundle):
        name = f"{engine}.{graph}.sm{'-'.join(map(str, target.sms))}.plan"
        plan = Plan(graph=graph, sms=target.sms, tensorrt=target.version, key=_key(bundle, graph, target))
        if bundle.manifest.plans.get(name) == plan:
            bundle.check_size(name, bundle.manifest.files[name])
            continue
        free = memory.available_bytes()
        if need > free:
            msg = (
                f"compiling {bundle.folder} takes about {memory.mebibytes(need)}, {memory.mebibytes(free)} are free; "
                f"{target.short_of_memory}"
            )
            raise OutOfMemory(msg)
        bundle = _build(bundle, name, plan, target, progress)
    return bundle


def _check_precision(bundle: Bundle, sms: Sequence[int]) -> None:
    precision = bundle.manifest.precision
    older = [sm for sm in sms if sm < LEAST_SM.get(precision, 0)]
    if older:
        msg = (
            f"{bundle.folder} is in {precision}, which GPUs multiply from SM {LEAST_SM[precision]} on, not SM "
            f"{', '.join(map(str, older))}; for those export with --precision int8 or int4"
        )
        raise InvalidRequest(msg)


def _build(bundle: Bundle, name: str, plan: Plan, target: Target, progress: Progress) -> Bundle:
    for part in _parts(bundle, plan.graph):
        bundle.check_size(part, bundle.manifest.files[part])
        bundle.check_hash(part, bundle.manifest.files[part])
    layers = bundle.manifest.dimensions.layers if plan.graph == "decoder" else 0
    data = compiler.compile_graph(
        target,
        bundle.folder / f"{plan.graph}.onnx",
        profiles(bundle.manifest, plan.graph),
        attentions=layers,
        progress=lambda phase, done, total: progress(f"{plan.graph}: {phase}", done, total),
    )
    path = bundle.folder / name
    try:
        write_atomically(path, data)
        entry = FileEntry(bytes=path.stat().st_size, sha256=sha256(path))
        manifest = replace(
            bundle.manifest,
            files={**bundle.manifest.files, name: entry},
            plans={**bundle.manifest.plans, name: plan},
        )
        write_atomically(bundle.folder / MANIFEST, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        msg = f"can't write {path}: {error.strerror or error}; copy the bundle to a place that can be written"
        raise BundleError(msg) from error
    return Bundle(bundle.folder, manifest)


def _key(bundle: Bundle, graph: str, target: Target) -> str:
    parts = {part: asdict(bundle.manifest.files[part]) for part in _parts(bundle, graph)}
    said = [parts, target.sms, target.version, profiles(bundle.manifest, graph)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _graphs(bundle: Bundle) -> list[str]:
    """A checkpoint without VQ files has none of its graphs."""
    return [graph for graph in GRAPHS if not graph.startswith("vq_") or f"{graph}.onnx" in bundle.manifest.files]


def _graph_bytes(bundle: Bundle, graph: str) -> int:
    return sum(bundle.manifest.files[part].bytes for part in _parts(bundle, graph))


def _parts(bundle: Bundle, graph: str) -> list[str]:
    bundle.path(f"{graph}.onnx")
    return [name for name in (f"{graph}.onnx", f"{graph}.data") if name in bundle.manifest.files]
