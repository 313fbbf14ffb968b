"""The noise: known answers, finiteness for every word, accuracy, and the same bits from every instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mgpt_edge.runtime import _native
from mgpt_edge.runtime.sampling import specification

if TYPE_CHECKING:
    from collections.abc import Iterator

ONES = 0xFFFFFFFF

# Random123's published known answers for philox4x32 with 10 rounds.
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# (seed, position, id) -> bits of the noise. Changing one changes every picture that anybody has a seed of.
VECTORS = [
    (0x0, 0, 0, 0x3F2CC257),
    (0x0, 0, 3, 0x3D946D1A),
    (0x7, 0, 4, 0x3F262E23),
    (0x7, 0, 5, 0xBEEC2F48),
    (0x7, 100, 8195, 0x3F261313),
    (0xFFFFFFFFFFFFFFFF, 4294967295, 2147483647, 0xBF96EFC9),
    (0x100000000, 1, 65535, 0x400E55B9),
    (0x7048860DDF79, 2400, 163840, 0xBF803C62),
]

EDGES = np.unique(
    np.concatenate(
        [np.arange(2**16), ONES - np.arange(2**16)]
        + [(1 << shift) + np.arange(-64, 64) for shift in range(8, 32)]
        + [int((1 - 0.5**0.5) * 2**32) + np.arange(-4096, 4096), int((1 - np.exp(-1)) * 2**32) + np.arange(-4096, 4096)]
    )
).astype(np.uint32)


@pytest.fixture(params=_native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.use_instruction_set(request.param)
    yield request.param
    _native.use_instruction_set(_native.instruction_sets()[0])


def truth(words: np.ndarray) -> np.ndarray:
    return -np.log(-np.log1p(-(words + 0.5) * 2.0**-32))


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in specification.philox4x32(counter, key)) == expected


@pytest.mark.parametrize(("seed", "position", "token", "bits"), VECTORS)
def test_vectors(seed: int, position: int, token: int, bits: int, instruction_set: str) -> None:
    ids = np.array([token], np.uint32)
    assert int(specification.gumbel(seed, position, ids).view(np.uint32)[0]) == bits
    assert int(_native.gumbel(seed, position, ids).view(np.uint32)[0]) == bits


def test_native_noise_is_the_reference(instruction_set: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        seed, position = int(rng.integers(0, 2**64, dtype=np.uint64)), int(rng.integers(0, 2**32))
        ids = rng.integers(0, 2**31, (3, 1000)).astype(np.uint32)
        expected = specification.gumbel(seed, position, ids)
        np.testing.assert_array_equal(_native.gumbel(seed, position, ids).view(np.uint32), expected.view(np.uint32))


def check_words(words: np.ndarray) -> None:
    noise = _native.gumbel_of_words(words)
    assert np.isfinite(noise).all()
    exact = truth(words)
    # Measured on every 97th word: 2.2 ulp where |noise| >= 1, 2.1e-7 below, where the last logarithm crosses zero.
    assert (np.abs(noise - exact) <= 2.5 * np.spacing(np.maximum(np.abs(exact), 1).astype(np.float32))).all()


def test_edges_are_finite_accurate_and_the_reference() -> None:
    check_words(EDGES)
    np.testing.assert_array_equal(_native.gumbel_of_words(EDGES), specification.gumbel_of_words(EDGES))


def test_extremes() -> None:
    first, last = _native.gumbel_of_words(np.array([0, ONES], np.uint32))
    assert first == pytest.approx(-np.log(-np.log1p(-(2.0**-33))), rel=1e-6)
    assert last == pytest.approx(-np.log(33 * np.log(2)), rel=1e-6)


def test_sampled_words_are_finite_and_accurate() -> None:
    check_words(np.random.default_rng(3).integers(0, 2**32, 2_000_000).astype(np.uint32))


@pytest.mark.slow
def test_every_word_is_finite() -> None:
    step = 2**22
    for start in range(0, 2**32, step):
        assert np.isfinite(_native.gumbel_of_words(np.arange(start, start + step, dtype=np.uint32))).all()


def test_an_unknown_instruction_set_names_the_known() -> None:
    with pytest.raises(ValueError, match="portable"):
        _native.use_instruction_set("sse9")
