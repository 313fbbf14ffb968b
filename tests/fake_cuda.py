"""CUDA's runtime, as cuda-python gives it, in this process' memory.

What is enqueued on the stream happens when the stream is waited for, and not before: a result that is read, or an
upload's source that is changed, too early shows.
"""

from __future__ import annotations

import ctypes
import enum
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = 7


class Status(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class FakeCuda:
    """Stands for the module `cuda.bindings.runtime`.

    Args:
        sm: compute capability of the one device.
        free: bytes of its memory.
    """

    cudaError_t = Status
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)

    def __init__(self, sm: int = 89, free: int = 1 << 30) -> None:
        self.sm, self.free = sm, free
        self.blocks: dict[int, Any] = {}
        self.queue: deque[Callable[[], object]] = deque()
        self.captured: list[Callable[[], object]] | None = None
        self.launches = self.graphs = self.waits = 0

    def enqueue(self, stream: int, work: Callable[[], object]) -> tuple[Status]:
        assert stream == STREAM
        (self.queue if self.captured is None else self.captured).append(work)
        return (Status.cudaSuccess,)

    def cudaSetDevice(self, _: int) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, _: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, SimpleNamespace(name=b"a GPU\0\0", major=self.sm // 10, minor=self.sm % 10)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        return Status.cudaSuccess, STREAM

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        assert stream == STREAM
        self.waits += 1
        self._catch_up()
        return (Status.cudaSuccess,)

    def _catch_up(self) -> None:
        while self.queue:
            self.queue.popleft()()

    def cudaStreamBeginCapture(self, _stream: int, _mode: int) -> tuple[Status]:
        self.captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, _stream: int) -> tuple[Status, Any]:
        graph, self.captured = self.captured, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Any, _flags: int) -> tuple[Status, Any]:
        self.graphs += 1
        return Status.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:
        graph.clear()
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, _graph: Any) -> tuple[Status]:
        self.graphs -= 1
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:
        assert stream == STREAM
        self.queue.extend(graph)
        self.launches += 1
        return (Status.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        return Status.cudaSuccess, self.free, 1 << 40

    def cudaMalloc(self, count: int) -> tuple[Status, int]:
        if count > self.free:
            return Status.cudaErrorMemoryAllocation, 0
        block = ctypes.create_string_buffer(b"\xff" * count, count)  # what nobody writes is NaN
        self.blocks[ctypes.addressof(block)] = block
        self.free -= count
        return Status.cudaSuccess, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Status]:
        """Waits, as CUDA's does, for what may still use the memory."""
        self._catch_up()
        self.free += len(self.blocks.pop(address))
        return (Status.cudaSuccess,)

    cudaMallocHost = cudaMalloc
    cudaFreeHost = cudaFree

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[Status]:
        return self.enqueue(stream, lambda: ctypes.memset(address, value, count))

    def cudaMemcpyAsync(self, target: int, source: int, count: int, _kind: int, stream: int) -> tuple[Status]:
        return self.enqueue(stream, lambda: ctypes.memmove(target, source, count))

    def cudaMemcpy2DAsync(
        self, target: int, pitch: int, source: int, source_pitch: int, count: int, lines: int, _kind: int, stream: int
    ) -> tuple[Status]:
        def copy() -> None:
            for line in range(lines):
                ctypes.memmove(target + line * pitch, source + line * source_pitch, count)

        return self.enqueue(stream, copy)
