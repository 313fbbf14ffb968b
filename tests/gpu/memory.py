"""Checks of caches and embeddings, byte by byte, for any library of the kernels' face."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gpu.library import FORMATS, INVALID, PICTURES, SHAPE

if TYPE_CHECKING:
    from tests.gpu.library import Buffer, Library

POISON = 0xA5
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 6e-8, -6e-8, 447, 449, 464, 0.0175], np.float16)


def e4m3_numbers() -> np.ndarray:
    """What codes 0 to 126 stand for, from the format's definition; 127 is NaN."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest number's code, of two the even one; beyond the largest, that."""
    numbers = e4m3_numbers()
    middles = (numbers[:-1] + numbers[1:]) / 2
    size = np.abs(x.astype(np.float64))
    code = np.searchsorted(middles, size, side="left")  # a middle belongs to the lower code
    tie = (code < len(middles)) & (size == middles[np.minimum(code, len(middles) - 1)])
    code = np.where(np.isnan(x), 127, code + (tie & (code % 2 == 1)))
    return (code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def to_int8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes, and the scale of each last axis."""
    x = x.astype(np.float32)
    with np.errstate(invalid="ignore"):
        scale = np.abs(x).max(-1) * (np.float32(1) / np.float32(127))
        scale = np.where(scale < np.float32(1e-30), np.float32(1e-30), scale)
        rounded = np.rint(x / scale[..., None])
    return np.where(np.isnan(rounded), 0, rounded).astype(np.int8).view(np.uint8), scale


def to_bytes(fresh: np.ndarray, name: str) -> np.ndarray:
    """Halves [..., dim] -> bytes [..., bytes of a head] in a format of the cache."""
    if name == "half":
        return np.ascontiguousarray(fresh).view(np.uint8)
    return to_e4m3(fresh) if name == "e4m3" else to_int8(fresh)[0]


class Caches:
    """Some layers' keys and values in a format, in the kernels' memory and as NumPy has them."""

    def __init__(self, library: Library, rng: np.random.Generator, name: str) -> None:
        self.library, self.rng, self.name = library, rng, name
        blocks, rows, heads, width = (int(n) for n in rng.integers(1, 5, 4))
        capacity, dim = int(rng.integers(width, 40)), 16 * int(rng.integers(1, 20))
        self.rows, self.width, self.capacity = rows, width, capacity
        self.shape = np.array([(rows, heads, capacity, dim, width, FORMATS.index(name))], SHAPE)
        size = dim * (2 if name == "half" else 1)
        self.bytes = np.full((blocks, rows, heads, capacity, size), POISON, np.uint8)
        self.scales = np.full((blocks, rows, heads, capacity), -1, np.float32)
        self.fresh = [library.put(np.zeros((rows, heads, width, dim), np.float16)) for _ in range(blocks)]
        self.caches = [library.put(block) for block in self.bytes]
        self.scale_buffers = [library.put(block) for block in self.scales] if name == "int8" else [None] * blocks
        self.blocks = library.blocks(list(zip(self.fresh, self.caches, self.scale_buffers, strict=True)))

    def append(self, lengths: np.ndarray, totals: np.ndarray) -> None:
        put: list[Buffer] = [self.library.put(numbers.astype(np.int32)) for numbers in (lengths, totals)]
        for index, buffer in enumerate(self.fresh):
            fresh = (self.rng.normal(size=buffer.shape) * self.rng.choice([1e-3, 1, 30])).astype(np.float16)
            special = self.rng.random(fresh.shape) < self.rng.choice([0, 0.02])
            fresh[special] = self.rng.choice(SPECIAL, int(special.sum()))
            fresh[:, :, 0][self.rng.random(fresh.shape[:2]) < 0.2] = 0
            buffer.write(fresh)
            for row, (start, end) in enumerate(zip(lengths, totals, strict=True)):
                new = fresh[row, :, : end - start]
                self.bytes[index, row, :, start:end] = to_bytes(new, self.name)
                self.scales[index, row, :, start:end] = to_int8(new)[1]
        self.library.run("append", self.blocks, len(self.fresh), self.shape, *put)
        self.library.synchronize()  # before the lengths' memory goes

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for array in (self.bytes, self.scales):
            array[:, target, :, :length] = array[:, source, :, :length]
        self.library.run("copy_prefix", self.blocks, len(self.fresh), self.shape, source, target, length)

    def check(self) -> None:
        """The whole memory: what was to be written is there, and nothing else was touched."""
        for index, buffer in enumerate(self.caches):
            np.testing.assert_array_equal(buffer.read(), self.bytes[index])
            scales = self.scale_buffers[index]
            if scales is not None:
                np.testing.assert_array_equal(scales.read(), self.scales[index])


def check_caches(library: Library, rng: np.random.Generator, name: str) -> None:
    """Rows that grow by different numbers of tokens, go back, and take each other's beginnings."""
    caches = Caches(library, rng, name)
    lengths = np.zeros(caches.rows, np.int64)
    for _ in range(4):
        totals = np.minimum(lengths + rng.integers(0, caches.width + 1, caches.rows), caches.capacity)
        caches.append(lengths, totals)
        lengths = np.maximum(totals - rng.integers(0, 3, caches.rows) * (rng.random() < 0.3), 0)  # rolled back
    if caches.rows > 1:
        source, target = (int(row) for row in rng.permutation(caches.rows)[:2])
        caches.copy_prefix(source, target, int(rng.integers(1, caches.capacity + 1)))
    caches.check()


def check_embedding(library: Library, rng: np.random.Generator) -> None:
    tokens, vocabulary, size = (int(n) for n in rng.integers(1, 70, 3))
    table = rng.integers(0, 256, (vocabulary, 16 * size), dtype=np.uint8)
    ids = rng.integers(0, vocabulary, tokens).astype(np.int32)
    out = library.put(np.full((tokens, 16 * size), POISON, np.uint8))
    table_buffer, id_buffer = library.put(table), library.put(ids)
    library.run("embed", table_buffer, id_buffer, tokens, 16 * size, out)
    np.testing.assert_array_equal(out.read(), table[ids])


def check_refusals(library: Library) -> None:
    """Numbers that no kernel takes come back as an error, and nothing is launched."""
    nothing = library.put(np.zeros(16, np.uint8))
    shape = np.array([(2, 1, 8, 16, 1, 0)], SHAPE)
    odd = np.array([(2, 1, 8, 24, 1, 0)], SHAPE)
    assert library.call("sample", nothing, 0, nothing) == INVALID
    assert library.call("step", np.zeros(1, PICTURES), 0) == INVALID
    assert library.call("roll_back", np.zeros(1, PICTURES), 0, 0) == INVALID
    assert library.call("append", nothing, 1, odd, nothing, nothing) == INVALID
    for source, target, length in ((2, 0, 1), (0, 2, 1), (1, 1, 1), (0, 1, 0), (0, 1, 9)):
        assert library.call("copy_prefix", nothing, 1, shape, source, target, length) == INVALID
    for count, size in ((0, 16), (1, 0), (1, 24)):
        assert library.call("embed", nothing, nothing, count, size, nothing) == INVALID
