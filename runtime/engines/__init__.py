"""Engines, a file each, behind one interface (`base`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime import memory
from mgpt_edge.runtime.engines.cuda import CudaEngine, check_provider
from mgpt_edge.runtime.engines.graphs import onnxruntime
from mgpt_edge.runtime.engines.kernels import kernel_library
from mgpt_edge.runtime.engines.native import NativeEngine
from mgpt_edge.runtime.engines.ort import OrtEngine
from mgpt_edge.runtime.engines.plans import library
from mgpt_edge.runtime.engines.tensorrt import TensorRtEngine
from mgpt_edge.runtime.engines.tensorrt10 import TensorRt10Engine
from mgpt_edge.runtime.errors import IncompatibleEngine
from mgpt_edge.runtime.gpu import Gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.engines.base import Engine

ENGINES: dict[str, Callable[[Bundle, int], Engine]] = {
    "native": NativeEngine,
    "cpu": OrtEngine,
    "rtx": TensorRtEngine,
    "cuda": CudaEngine,
    "tensorrt": TensorRtEngine,
    "tensorrt10": TensorRt10Engine,
}

ON_CPU = frozenset(("native", "cpu"))
CHECKS: dict[str, Callable[[], object]] = {
    "native": onnxruntime,  # for the VQ model
    "cpu": onnxruntime,
    "rtx": lambda: (Gpu(), library("rtx")),
    "cuda": lambda: check_provider(Gpu()),
    "tensorrt": lambda: (Gpu(), library("tensorrt")),
    "tensorrt10": lambda: (Gpu(), library("tensorrt10"), kernel_library()),
}


def load_engine(bundle: Bundle, threads: int) -> Engine:
    """The engine that a bundle was exported for.

    Raises:
        IncompatibleEngine: this version has no such engine, or what it needs is not here.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        msg = f"{bundle.folder} was exported for engine {name!r}; this version runs {', '.join(ENGINES)}"
        raise IncompatibleEngine(msg)
    return ENGINES[name](bundle, threads)


def free_bytes(name: str) -> int:
    """Bytes free where an engine keeps weights and caches: the machine's memory, or its GPU's.

    Raises:
        IncompatibleEngine: there is no GPU, and the engine needs one.
    """
    return memory.available_bytes() if name in ON_CPU else Gpu().free_bytes()


def missing(name: str) -> str | None:
    """What an engine lacks on this machine, or None where it can run."""
    try:
        CHECKS[name]()
    except IncompatibleEngine as error:
        return str(error)
    return None
