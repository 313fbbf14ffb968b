"""Times each kernel from a CUDA graph, beside a copy of memory in the same run: one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy
import numpy as np

from tests.gpu import drawing, gpu
from tests.gpu.library import CURSOR, FORMATS, PICTURE, PICTURES, SHAPE, TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.gpu.library import Library

    Timed = tuple[str, str, int, Callable[[], None]]
    """Kernel, shape, bytes that it must move, one launch."""

LAYERS, ROWS, HEADS, DIM, HIDDEN = 32, 2, 32, 128, 4096  # the 7B shape
CAPACITY, PREFILL = 640, 512
CODES = 8192


def copy_speed() -> float:
    """Bytes read and written each second by a copy much larger than any cache."""
    size = min(1 << 30, cupy.cuda.runtime.memGetInfo()[0] // 4)
    source = cupy.asarray(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    target, stream, taken = cupy.empty_like(source), cupy.cuda.Stream(non_blocking=True), []
    for _ in range(12):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        cupy.cuda.runtime.memcpyAsync(
            target.data.ptr, source.data.ptr, size, cupy.cuda.runtime.memcpyDeviceToDevice, stream.ptr
        )
        end.record(stream)
        end.synchronize()
        taken.append(cupy.cuda.get_elapsed_time(start, end) / 1000)
    return 2 * size / float(np.median(taken[2:]))


def samples(library: Library, rng: np.random.Generator) -> Iterator[Timed]:
    shapes = ((CODES, 2000, True, 1), (CODES, 2000, True, 16), (16384, 2000, True, 1), (65536, 2000, True, 1))
    for size, top_k, paired, count in (*shapes, (65536, 5, False, 1)):
        rows = (rng.normal(size=(2, size)) * 3).astype(np.float32)
        case = {"first_id": 4, "low": 4, "high": 4 + size, "top_k": top_k, "temperature": 1.0, "seed": 1}
        case |= {"guidance": 4.0 if paired else 1.0, "position": 9}
        requests, logits = drawing.requests_of(library, [(rows[0], rows[1] if paired else None, case)] * count)
        results = library.put(np.zeros((count, 2), np.uint32))

        def work(requests=requests, _logits=logits, count=count, results=results) -> None:
            library.run("sample", requests, count, results)

        name = f"{count} x {size} ids, {'two rows' if paired else 'one row'}, top {top_k}"
        yield "sample", name, count * size * (8 if paired else 4), work


def steps(library: Library, rng: np.random.Generator) -> Iterator[Timed]:
    size = 100_000  # more codes than are drawn
    forced, tokens = library.put(np.full(size, -1, np.int32)), library.put(np.zeros(size, np.int32))
    picture = np.zeros(1, PICTURE)
    values = {"forced": forced.address, "tokens": tokens.address, "size": size, "low": 4, "high": 4 + CODES}
    values |= {"top_k": 2000, "guidance": 4.0, "temperature": 1.0, "seed": 3}
    for name, value in values.items():
        picture[name] = value
    logits = library.put((rng.normal(size=(2, CODES)) * 3).astype(np.float32))
    kept = [library.put(picture), library.put(np.array([(1, 1, TOKEN)], CURSOR)), forced, tokens, logits]
    feed = [library.put(np.zeros(2, np.int32)) for _ in range(4)]
    addresses = [buffer.address for buffer in (*kept[:2], *feed, logits)]
    pictures = np.array([(*addresses, 4, CODES, 1, 1)], PICTURES)

    def work(_kept=(kept, feed)) -> None:
        library.run("step", pictures, 1)

    yield "step", f"{CODES} ids, two rows, top 2000", 2 * 4 * CODES, work


def appends(library: Library, rng: np.random.Generator, name: str) -> Iterator[Timed]:
    """Keys and values of all layers: a token a row, a prompt, and a prompt's copy to the other row."""
    element, scale = (2, 0) if name == "half" else (1, 4 if name == "int8" else 0)
    for width in (1, PREFILL):
        shape = np.array([(ROWS, HEADS, CAPACITY, DIM, width, FORMATS.index(name))], SHAPE)
        fresh = rng.normal(size=(ROWS, HEADS, width, DIM)).astype(np.float16)
        cache = np.zeros((ROWS, HEADS, CAPACITY, DIM * element), np.uint8)
        scales = np.zeros((ROWS, HEADS, CAPACITY), np.float32)
        parts = [
            (library.put(fresh), library.put(cache), library.put(scales) if scale else None) for _ in range(2 * LAYERS)
        ]
        blocks = library.blocks(parts)
        lengths, totals = (library.put(np.full(ROWS, start, np.int32)) for start in (64, 64 + width))

        def append(blocks=blocks, _parts=parts, shape=shape, lengths=lengths, totals=totals) -> None:
            library.run("append", blocks, 2 * LAYERS, shape, lengths, totals)

        heads = 2 * LAYERS * HEADS * width
        moved = heads * ROWS * (DIM * (2 + element) + scale)
        yield f"append {name}", f"{width} tokens, {ROWS} rows, {LAYERS} layers", moved, append

    def copy() -> None:
        library.run("copy_prefix", blocks, 2 * LAYERS, shape, 0, 1, PREFILL)

    yield f"copy_prefix {name}", f"{PREFILL} tokens, {LAYERS} layers", 2 * heads * (DIM * element + scale), copy


def embeddings(library: Library, rng: np.random.Generator) -> Iterator[Timed]:
    vocabulary = 16384
    table = library.put(rng.integers(0, 256, (vocabulary, 2 * HIDDEN), np.uint8))
    for count in (ROWS, ROWS * PREFILL):
        tokens = library.put(rng.integers(0, vocabulary, count).astype(np.int32))
        out = library.put(np.zeros((count, 2 * HIDDEN), np.uint8))

        def work(tokens=tokens, count=count, out=out) -> None:
            library.run("embed", table, tokens, count, 2 * HIDDEN, out)

        yield "embed", f"{count} tokens of {HIDDEN}", 2 * count * 2 * HIDDEN, work


def main() -> None:
    library = gpu.open_library()
    rng = np.random.default_rng(61)
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    peak = copy_speed()
    print(f"{properties['name'].decode()}: a large copy moves {peak / 1e9:.0f} GB/s, read and written")
    print("medians of graph launches over the same data: what is small comes from caches, whatever GB/s say")
    print(f"{'kernel':18} {'shape':44} {'us':>9} {'GB/s':>8} {'of copy':>8}")
    kinds = [
        samples,
        steps,
        embeddings,
        *(lambda library, rng, name=name: appends(library, rng, name) for name in FORMATS),
    ]
    for kind in kinds:
        for kernel, shape, moved, work in kind(library, rng):
            taken = gpu.microseconds(library, work)
            speed = moved / taken * 1e6
            print(f"{kernel:18} {shape:44} {taken:9.1f} {speed / 1e9:8.0f} {speed / peak:8.1%}")


if __name__ == "__main__":
    main()
