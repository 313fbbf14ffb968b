"""All that is known of an engine before one of its bundles is loaded: one record each, in the engine's own file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime import machine
from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.errors import IncompatibleEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """The TensorRT that compiles an engine's graphs to plans and runs them.

    Args:
        title: of the product.
        module: that is imported.
        install: how a user gets it.
        widest: tokens a sequence of one pass, as compiled.
        since: its first version that reads what the engine's lowering writes.
        for_rtx: whether it is TensorRT for RTX, which compiles without a GPU and makes CUDA graphs by itself.
    """

    title: str
    module: str
    install: str
    widest: int
    since: tuple[int, int] = (0, 0)
    for_rtx: bool = False

    def load(self) -> Any:
        """Returns the module.

        Raises:
            IncompatibleEngine: it is not installed.
        """
        try:
            return import_module(self.module)
        except ImportError as error:
            msg = f"{self.title} can't be imported ({error}); install it: {self.install}"
            raise IncompatibleEngine(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """An engine, as its bundles, commands and estimates know it.

    Args:
        name: in manifests and on the command line.
        order: place in lists; of the engines that have a precision the first is chosen unless one is named.
        lowering: name of what writes its bundles, in `export/lower`.
        on_gpu: whether weights and caches lie in a GPU's memory.
        element_bytes: of a number in the K/V cache.
        scale_bytes: beside the numbers of a head's key or value of one token.
        load: opens a bundle, with a number of threads.
        check: raises `IncompatibleEngine` where something is missing on this machine.
        arithmetic: a number that grows when the same bundle and seed begin to draw other pictures.
        compiler: of its plans; None where bundles run as they were exported.
    """

    name: str
    order: int
    lowering: str
    on_gpu: bool
    element_bytes: int
    scale_bytes: int = 0
    load: Callable[[Bundle, int], Engine]
    check: Callable[[], object]
    arithmetic: int = 1
    compiler: Compiler | None = None

    def free_bytes(self) -> int:
        """Returns the bytes free where the engine keeps weights and caches: the machine's memory, or its GPU's.

        Raises:
            IncompatibleEngine: there is no GPU, and the engine needs one.
        """
        return Gpu().free_bytes() if self.on_gpu else machine.available_bytes()

    def missing(self) -> str | None:
        """Returns what the engine lacks on this machine, or None where it can run."""
        try:
            self.check()
        except IncompatibleEngine as error:
            return str(error)
        return None
