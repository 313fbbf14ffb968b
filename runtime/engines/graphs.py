"""The graphs of a bundle in ONNX Runtime: which one is installed, loading, and the VQ model's two directions."""

from __future__ import annotations

import threading
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime import machine
from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory
from mgpt_edge.runtime.process import guard, lose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.runtime.bundle.folder import Bundle


@cache
def onnxruntime() -> Any:
    """The installed ONNX Runtime module.

    Raises:
        IncompatibleEngine: none is installed, or two that overwrite each other.
    """
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(found) == 2:
        msg = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "keep one: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'mgpt-edge[cpu]' (or [cuda])"
        )
        raise IncompatibleEngine(msg)
    try:
        import onnxruntime as module
    except ImportError as error:
        if "cannot allocate memory" in str(error).lower() or "failed to map segment" in str(error):
            limit = machine.memory_limit()
            free = machine.mebibytes(limit.free_bytes)
            msg = f"no memory to load ONNX Runtime ({error}); {free} are free by {limit.source}"
            raise OutOfMemory(msg) from error
        msg = f"no ONNX Runtime can be imported ({error}); install one: pip install 'mgpt-edge[cpu]' (or [cuda])"
        raise IncompatibleEngine(msg) from error
    return module


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def session_options(threads: int) -> Any:
    """How graphs are run: on so many threads, which rest between runs, and with exact products of bytes everywhere."""
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # x86 before VNNI adds pairs of products in 16 bits, where they saturate; this takes the kernels that don't.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # Otherwise they spin on, on the cores that the next graph, or our own decoder, computes on: half the speed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


class Graphs:
    """A bundle's graphs in ONNX Runtime; each is loaded when first used.

    Args:
        bundle: opened.
        threads: of every run on the CPU.
    """

    providers: Sequence[Any] = ("CPUExecutionProvider",)
    """Where the graphs run, the first before the others."""
    most_tokens = (1 << 31) - 1

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle = bundle
        self.threads = threads
        self.lock = threading.Lock()
        self._sessions: dict[str, Any] = {}
        guard(self)

    def session(self, name: str) -> Any:
        """The loaded graph `name`.onnx of the bundle.

        Raises:
            IncompatibleEngine: ONNX Runtime refuses it.
        """
        if name not in self._sessions:
            ort, options = onnxruntime(), session_options(self.threads)
            path = self.bundle.path(f"{name}.onnx")
            try:
                self._sessions[name] = ort.InferenceSession(path, options, providers=list(self.providers))
            except Exception as error:
                msg = f"onnxruntime {ort.__version__} can't load {path}: {error}; see: mgpt doctor"
                raise IncompatibleEngine(msg) from error
        return self._sessions[name]

    def prepare(self, *, draws: bool, reads: bool) -> None:
        with self.lock:
            for name in ("vq_decoder",) * draws + ("vq_encoder",) * reads:
                self.session(name)
        self.bundle.check_unchanged()

    def forked(self) -> None:
        """A forked child opens sessions of its own: the threads of these are its parent's."""
        lose(self._sessions)
        self._sessions = {}

    def free_bytes(self) -> int:
        return machine.available_bytes()

    def decode_pixels(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._run("vq_decoder", codes)

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self._run("vq_encoder", pixels)

    def _run(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        with self.lock:
            session = self.session(name)
            (result,) = session.run(None, {session.get_inputs()[0].name: array[None]})
        return result[0]  # type: ignore[no-any-return]
