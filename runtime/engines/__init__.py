"""Engines behind one interface (`base`), each with a file and a record (`kind`) of its own: `native`, our decoder;
`cpu`, ONNX Runtime; in `gpu/` those whose caches lie on a GPU.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

from mgpt_edge.runtime.catalogue import catalogue
from mgpt_edge.runtime.engines.kind import EngineKind
from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Engine
    from mgpt_edge.runtime.engines.kind import Compiler


@cache
def engine_kinds() -> dict[str, EngineKind]:
    """Returns every engine by its name."""
    return catalogue(sys.modules[__name__], EngineKind)


def engine_kind(name: str) -> EngineKind:
    """Returns the engine of this name.

    Raises:
        IncompatibleEngine: this version has none.
    """
    kinds = engine_kinds()
    if name not in kinds:
        msg = f"there is no engine {name!r}; this version has {', '.join(kinds)}"
        raise IncompatibleEngine(msg)
    return kinds[name]


def compiler_of(name: str) -> Compiler:
    """Returns what compiles an engine's plans.

    Raises:
        IncompatibleEngine: there is no such engine, or its bundles run as they were exported.
    """
    compiler = engine_kind(name).compiler
    if compiler is None:
        msg = f"bundles of engine {name!r} run as they were exported: there is nothing to compile"
        raise IncompatibleEngine(msg)
    return compiler


def load_engine(bundle: Bundle, threads: int) -> Engine:
    """Returns the engine that a bundle was exported for.

    Raises:
        IncompatibleEngine: this version has no such engine, or what it needs is not here.
    """
    name, kinds = bundle.manifest.engine, engine_kinds()
    if name not in kinds:
        msg = f"{bundle.folder} was exported for engine {name!r}; this version runs {', '.join(kinds)}"
        raise IncompatibleEngine(msg)
    return kinds[name].load(bundle, threads)
