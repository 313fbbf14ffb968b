"""The kernels on a GPU: cupy for memory, streams and graphs."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import cupy

from tests.gpu.library import Library

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = Path(__file__).parents[2] / "build" / "gpu" / "libmgpt_cuda.so"


def open_library() -> Library:
    """Every buffer is an allocation of its own: compute-sanitizer sees what goes beyond it."""
    cupy.cuda.set_allocator(None)
    return Library(PATH, cupy.asarray)


def captured(library: Library, work: Callable[[], None], times: int) -> tuple[cupy.cuda.Stream, cupy.cuda.Graph]:
    """A graph that does the work so many times, and the stream for it. Kernels must have run once before."""
    cupy.cuda.runtime.deviceSynchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    library.stream = stream.ptr
    try:
        stream.begin_capture()
        for _ in range(times):
            work()
        return stream, stream.end_capture()
    finally:
        library.stream = 0


def microseconds(library: Library, work: Callable[[], None], times: int = 20, launches: int = 15) -> float:
    """The median of graph launches, for each time of the work."""
    work()
    stream, graph = captured(library, work, times)
    taken = []
    for _ in range(launches + 3):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        taken.append(1000 * cupy.cuda.get_elapsed_time(start, end) / times)
    return median(taken[3:])
