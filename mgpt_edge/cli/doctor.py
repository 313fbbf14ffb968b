"""`mgpt doctor`: what a bug report needs, and why something may not run here."""

from __future__ import annotations

import json
from typing import Any

from mgpt_edge.cli.options import AsJson

BANDWIDTH_BYTES = 256 << 20
BANDWIDTH_SECONDS = 0.5


def doctor(as_json: AsJson = False) -> None:
    """Print versions, cores, memory and engines of this machine."""
    facts = _facts()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:16} {value}")


def _facts() -> dict[str, Any]:
    import platform
    import sys
    from importlib import metadata

    from mgpt_edge.runtime import _native, machine
    from mgpt_edge.runtime.bundle.folder import default_bundle

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    cores, limit = machine.usable_cores(), machine.memory_limit()
    bandwidth = _native.read_bandwidth(BANDWIDTH_BYTES, cores, BANDWIDTH_SECONDS)
    names = ("mgpt-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-python", "torch")
    return {
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        **{name: installed(name) for name in names},
        **_engines(),
        "decoder kernels": " ".join(_native.instruction_sets()),
        "cuda kernels": _cuda_kernels(),
        "cores": cores,
        "cpu features": " ".join(name for name, there in _native.cpu_features().items() if there) or "none known",
        "memory read": f"{bandwidth:.1f} GB/s with {cores} threads",
        "memory free": f"{machine.mebibytes(limit.free_bytes)}, by {limit.source}",
        "gpu": _gpu(),
        "default bundle": str(default_bundle()) if default_bundle().is_dir() else f"missing: {default_bundle()}",
    }


def _engines() -> dict[str, str]:
    from mgpt_edge.runtime.engines import engine_kinds

    lacking = {name: kind.missing() for name, kind in engine_kinds().items()}
    return {f"engine {name}": "ready" if lack is None else f"no: {lack}" for name, lack in lacking.items()}


def _cuda_kernels() -> str:
    """Whether TensorRT's engines draw codes on the GPU, or what keeps them from it."""
    from mgpt_edge.runtime.engines.gpu.kernels import kernel_library
    from mgpt_edge.runtime.errors import IncompatibleEngine

    try:
        kernel_library()
    except IncompatibleEngine as error:
        return f"none: {error}"
    return "built in"


def _gpu() -> str:
    """The GPU as cuda-python sees it, or why there is none."""
    from mgpt_edge.runtime.engines.gpu.device import Gpu
    from mgpt_edge.runtime.errors import IncompatibleEngine
    from mgpt_edge.runtime.machine import mebibytes

    try:
        gpu = Gpu()
    except IncompatibleEngine as error:
        return f"none: {error}"
    return f"{gpu.name}, SM {gpu.sm}, {mebibytes(gpu.free_bytes())} free"
