"""Engines, a file each, behind one interface (`base`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.runtime.engines.cuda import CudaEngine
from mgpt_edge.runtime.engines.native import NativeEngine
from mgpt_edge.runtime.engines.ort import OrtEngine
from mgpt_edge.runtime.engines.rtx import RtxEngine
from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.runtime.bundle import Bundle
    from mgpt_edge.runtime.engines.base import Engine

ENGINES: dict[str, Callable[[Bundle, int], Engine]] = {
    "native": NativeEngine,
    "cpu": OrtEngine,
    "rtx": RtxEngine,
    "cuda": CudaEngine,
}


def load_engine(bundle: Bundle, threads: int) -> Engine:
    """The engine that a bundle was exported for.

    Raises:
        IncompatibleEngine: this version has no such engine, or what it needs is not installed.
    """
    name = bundle.manifest.engine
    if name not in ENGINES:
        msg = f"{bundle.folder} was exported for engine {name!r}; this version runs {', '.join(ENGINES)}"
        raise IncompatibleEngine(msg)
    return ENGINES[name](bundle, threads)
