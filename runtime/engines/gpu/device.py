"""The machine's GPU through cuda-python: memory, copies, one stream. No engine is known here."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Gpu:
    """The first device, and a stream on it that everything here goes through, in order.

    Raises:
        IncompatibleEngine: cuda-python is not installed, or there is no driver or device.
    """

    def __init__(self) -> None:
        self._cuda, self._process = _runtime(), os.getpid()
        self._call("cudaSetDevice", 0)
        properties = self._call("cudaGetDeviceProperties", 0)
        self.name = properties.name.rstrip(b"\0").decode()
        self.sm = 10 * properties.major + properties.minor
        self.stream = int(self._call("cudaStreamCreate"))

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, count: int) -> Buffer:
        """Device memory, zero at first; freed with the object.

        Raises:
            OutOfMemory: the device has less.
        """
        status, address = self._cuda.cudaMalloc(count)
        if status != self._cuda.cudaError_t.cudaSuccess:
            free = self.free_bytes()
            msg = f"{count >> 20:,} MiB wanted on {self.name}, {free >> 20:,} MiB are free; see: mgpt estimate"
            raise OutOfMemory(msg)
        buffer = Buffer(int(address), count)
        weakref.finalize(buffer, self._cuda.cudaFree, buffer.address)
        self._call("cudaMemsetAsync", buffer.address, 0, count, self.stream)
        return buffer

    def constant(self, array: NDArray[Any]) -> Buffer:
        """A copy of a C-ordered array on the device, there at once.

        Raises:
            OutOfMemory: as `allocate`.
        """
        buffer = self.allocate(array.nbytes)
        self.upload(array, buffer.address)
        self.wait()
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array of this process that copies need not pass through another buffer."""
        kind: np.dtype[Any] = np.dtype(dtype)
        count = int(np.prod(shape)) * kind.itemsize
        address = int(self._call("cudaMallocHost", count))
        block = (ctypes.c_uint8 * count).from_address(address)
        weakref.finalize(block, self._cuda.cudaFreeHost, address)
        return np.frombuffer(memoryview(block), kind).reshape(shape)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Enqueues a copy of a C-ordered array to the device; pinned, it must not change before `wait`."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Enqueues a copy to a C-ordered array; it is there after `wait`."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, source: int, target: int, count: int) -> None:
        self._copy(target, source, count, "cudaMemcpyDeviceToDevice")

    def copy_lines(self, source: tuple[int, int], target: tuple[int, int], count: int, lines: int) -> None:
        """Enqueues copies of `count` bytes of each of `lines`; (address of the first, bytes from one to the next)."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", *target, *source, count, lines, kind, self.stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` enqueues as one CUDA graph; nothing of it runs."""
        self._call("cudaStreamBeginCapture", self.stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        made = Graph(self._call("cudaGraphInstantiate", graph, 0))
        weakref.finalize(made, self._cuda.cudaGraphExecDestroy, made.handle)
        self._call("cudaGraphDestroy", graph)
        return made

    def launch(self, graph: Graph) -> None:
        self._call("cudaGraphLaunch", graph.handle, self.stream)

    def wait(self) -> None:
        """Until everything enqueued is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def _copy(self, target: int, source: int, count: int, kind: str) -> None:
        self._call("cudaMemcpyAsync", target, source, count, getattr(self._cuda.cudaMemcpyKind, kind), self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A function of CUDA's runtime; what it gives beside its status."""
        if self._process != os.getpid():
            msg = (
                f"{self.name} can't be used in a process that was forked after it was opened; load the model in the "
                'child, or start it by multiprocessing.get_context("spawn")'
            )
            raise IncompatibleEngine(msg)
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            msg = f"{name} gives {status.name} ({int(status)}); is an NVIDIA GPU and its driver here? See: mgpt doctor"
            raise IncompatibleEngine(msg)
        return values[0] if len(values) == 1 else tuple(values)


class Buffer:
    """Device memory; whoever keeps the address keeps this."""

    def __init__(self, address: int, count: int) -> None:
        self.address = address
        self.count = count


class Graph:
    """Enqueued work, to be launched as one; it goes with the object."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        msg = f"cuda-python can't be imported ({error}); install it: pip install 'mgpt-edge[cuda]' (or [rtx])"
        raise IncompatibleEngine(msg) from error
    return runtime
