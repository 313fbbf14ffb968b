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

    from mgpt_edge.runtime import _native, memory
    from mgpt_edge.runtime.bundle import default_bundle

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    cores = memory.physical_cores()
    bandwidth = _native.read_bandwidth(BANDWIDTH_BYTES, cores, BANDWIDTH_SECONDS)
    names = ("mgpt-edge", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "torch")
    return {
        "python": f"{sys.version.split()[0]} on {platform.platform()}",
        **{name: installed(name) for name in names},
        "engine": _engine(),
        "decoder kernels": " ".join(_native.decoder_kernels()),
        "cores": cores,
        "cpu features": " ".join(name for name, there in _native.cpu_features().items() if there) or "none known",
        "memory read": f"{bandwidth:.1f} GB/s with {cores} threads",
        "memory free": memory.mebibytes(memory.available_bytes()),
        "gpu": _gpu(),
        "default bundle": str(default_bundle()) if default_bundle().is_dir() else f"missing: {default_bundle()}",
    }


def _engine() -> str:
    from mgpt_edge.runtime.engines.graphs import onnxruntime
    from mgpt_edge.runtime.errors import IncompatibleEngine

    try:
        module = onnxruntime()
    except IncompatibleEngine as error:
        return f"none: {error}"
    return f"ONNX Runtime {module.__version__}: {', '.join(module.get_available_providers())}"


def _gpu() -> str:
    """The first CUDA device's name by the driver, or why there is none."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "none: there is no NVIDIA driver (libcuda.so.1)"
    status = driver.cuInit(0)
    if status:
        return f"none: the NVIDIA driver does not start (cuInit gives {status})"
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
    driver.cuDeviceGetCount(ctypes.byref(count))
    if not count.value:
        return "none: the NVIDIA driver knows no device"
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    return f"{name.value.decode()}; this version runs on the CPU only"
