"""The order of float sums: the native decoder on every instruction set, and teams of 4 and 32 lanes, to the bit."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mgpt_edge.runtime import _native
from mgpt_edge.runtime._native import CpuDecoder, instruction_sets
from mgpt_edge.runtime.bundle.manifest import Dimensions
from mgpt_edge.runtime.engines import specification
from mgpt_edge.runtime.engines.specification import SpecifiedDecoder, exponential, pairs, strands
from mgpt_edge.runtime.family.rotary import rotary_tables
from tests.csrc.cuda.test_device import compile_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

VOCABULARY = 50


def floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Of many magnitudes, so that each order of a sum has other bits."""
    return (rng.normal(size=shape) * np.exp2(rng.integers(-8, 9, shape))).astype(np.float32)


@pytest.fixture(scope="module")
def teams(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    from pathlib import Path

    path = tmp_path_factory.mktemp("teams") / "teams.so"
    return ctypes.CDLL(
        str(compile_to(path, "-O2", "-pthread", "-shared", "-fPIC", Path(__file__).with_name("teams.cpp")))
    )


def address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def size(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


@pytest.mark.parametrize("lanes", [4, 32])
def test_teams_add_norms_in_strands(teams: ctypes.CDLL, lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    for count in (1, 2, 15, 16, 31, 32, 33, 48, 64, 100, 1000, 4096):
        x, y = floats(rng, 3, count), np.zeros(3, np.float32)
        teams.strands_of(address(x), size(3), size(count), lanes, address(y))
        np.testing.assert_array_equal(y, strands(x))


@pytest.mark.parametrize("lanes", [4, 32])
def test_teams_attend_in_spans(teams: ctypes.CDLL, lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    for positions in (1, 2, 31, 63, 64, 65, 127, 128, 129, 200, 320, 450):
        cache = specification.HeadCache([], [], [], [])
        for _ in range(positions):
            cache.append(floats(rng, 16), floats(rng, 16))
        query, y = rng.normal(size=16).astype(np.float32), np.zeros(16, np.float32)
        rounded, scale = specification.quantise(query, 16)
        products = (np.stack(cache.keys) @ rounded[0]).astype(np.float32)
        scores = products * np.array(cache.key_scales, np.float32) * scale[0] * np.float32(0.25)
        values = np.stack(cache.values).astype(np.int8)
        scales = np.array(cache.value_scales, np.float32)
        at = [address(array) for array in (scores, values, scales)]
        teams.attention_of(*at, size(positions), size(16), lanes, address(y))
        np.testing.assert_array_equal(y, cache.attend(query))


@pytest.mark.parametrize("lanes", [4, 32])
def test_teams_add_groups_in_chunks(teams: ctypes.CDLL, lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    for groups in (1, 2, 15, 16, 17, 32, 33, 48, 49, 86, 128, 344):
        terms, y = floats(rng, groups, 40), np.zeros(40, np.float32)
        teams.chunks_of(address(terms), size(groups), size(40), lanes, address(y))
        parts = [terms[start : start + 16] for start in range(0, groups, 16)]
        np.testing.assert_array_equal(y, pairs(np.stack([np.add.accumulate(part)[-1] for part in parts])))


def test_the_exponential_is_near_numpys() -> None:
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    np.testing.assert_allclose(exponential(x), np.exp(x.astype(np.float64)), rtol=2.5e-7)
    assert exponential(np.float32([-87.1, -np.inf, 0])).tolist() == [0, 0, 1]


def packed(rng: np.random.Generator, name: str, out: int, size: int) -> dict[str, NDArray[Any]]:
    """Random weights as a file has them, of 4 bits where groups divide the inputs."""
    blocks = -(-out // 16)
    if size % 32:
        weights = rng.integers(1, 256, (blocks, size // 4, 16, 4), np.uint8)
        return {name: weights, f"{name}.scale": np.abs(floats(rng, blocks * 16)) * np.float32(2**-12)}
    weights = rng.integers(0, 256, (blocks, size // 8, 16, 4), np.uint8)
    scales = floats(rng, blocks, size // 32, 16) * np.float32(2**-8)
    return {name: weights, f"{name}.scale": (scales.view(np.uint32) >> 16).astype(np.uint16)}


def model(seed: int) -> tuple[Dimensions, dict[str, NDArray[Any]], dict[str, str]]:
    """A random decoder: 8 bits and 4, grouped heads, norms before or behind a branch, more groups than two chunks."""
    rng = np.random.default_rng(seed)
    kv_heads, group, dim = int(rng.integers(1, 4)), int(rng.integers(1, 4)), 16 * int(rng.integers(1, 6))
    hidden, inner = 16 * int(rng.integers(1, 80)), 16 * int(rng.integers(1, 80))
    d = Dimensions(
        layers=2,
        hidden_size=hidden,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=dim,
        rope_theta=10_000.0,
    )
    mixed, keys = d.heads * dim, kv_heads * dim
    tensors = {"norm": floats(rng, hidden), **packed(rng, "head", VOCABULARY, hidden)}
    tensors["embedding"] = rng.integers(-127, 128, (VOCABULARY, hidden), np.int8)
    tensors["embedding.scale"] = np.abs(floats(rng, VOCABULARY))
    for layer in range(d.layers):
        at = f"layers.{layer}."
        tensors |= packed(rng, f"{at}qkv", mixed + 2 * keys, hidden) | packed(rng, f"{at}out", hidden, mixed)
        tensors |= packed(rng, f"{at}gate_up", 2 * inner, hidden) | packed(rng, f"{at}down", hidden, inner)
        for name, count in (("attention_norm", hidden), ("mlp_norm", hidden)):
            tensors[at + name] = floats(rng, count)
        for name, heads in (("query_norm", d.heads), ("key_norm", kv_heads)):
            tensors[at + name], tensors[f"{at}{name}.bias"] = floats(rng, heads, dim), floats(rng, heads, dim)
    said = {"norm_eps": "1e-05", "norm_after": str(bool(rng.integers(2))).lower(), "intermediate_size": str(inner)}
    return d, tensors, said


def loaded(
    d: Dimensions, tensors: dict[str, NDArray[Any]], said: dict[str, str], threads: int, kernels: str, positions: int
) -> CpuDecoder:
    sizes = {name: getattr(d, name) for name in ("layers", "hidden_size", "heads", "kv_heads", "head_dim")}
    sizes |= {"intermediate_size": int(said["intermediate_size"]), "vocabulary": VOCABULARY}
    after = said["norm_after"] == "true"
    decoder = CpuDecoder(sizes, float(said["norm_eps"]), after, tensors, threads, kernels)
    decoder.rotate(*rotary_tables(positions, d.head_dim, d.rope_theta))
    return decoder


def logits_of(decoder: CpuDecoder, tokens: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    cache, out = decoder.cache([len(tokens)]), np.empty((len(tokens), VOCABULARY), np.float32)
    for start in range(0, len(tokens), width):
        part = tokens[start : start + width].copy()
        plan = np.array([[0, len(part), len(part)]])
        decoder.forward(cache, plan, part, 0, VOCABULARY, out=out[start : start + width])
    return out


@pytest.mark.parametrize("seed", range(8))
def test_every_instruction_set_follows_the_specification(seed: int) -> None:
    d, tensors, said = model(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, int(rng.integers(60, 135)))
    expected = SpecifiedDecoder(d, tensors, said).logits(tokens.tolist())[:, :VOCABULARY]
    assert np.isfinite(expected).all()
    for kernels in instruction_sets():
        for threads, width in ((1, len(tokens)), (2, 7), (5, 1)):
            decoder = loaded(d, tensors, said, threads, kernels, len(tokens))
            np.testing.assert_array_equal(logits_of(decoder, tokens, width), expected)


@pytest.fixture
def foreign_mode(tmp_path: Path) -> Iterator[Callable[[], int]]:
    """Another library's way with floats: rounding towards zero, denormals flushed on x86; gives the state."""
    source = tmp_path / "mode.cpp"
    source.write_text(
        """
        #include <cfenv>
        #if defined(__x86_64__)
        #include <immintrin.h>
        extern "C" void set_mode() { _mm_setcsr(0x1F80 | 0x8040 | 0x6000); }
        extern "C" unsigned mode() { return _mm_getcsr() & ~0x3Fu; }
        #else
        extern "C" void set_mode() { std::fesetround(FE_TOWARDZERO); }
        extern "C" unsigned mode() { return static_cast<unsigned>(std::fegetround()); }
        #endif
        extern "C" void usual_mode() { std::fesetenv(FE_DFL_ENV); }
        """
    )
    library = ctypes.CDLL(str(compile_to(tmp_path / "mode.so", "-O1", "-shared", "-fPIC", source)))
    library.set_mode()
    yield library.mode
    library.usual_mode()


def test_other_libraries_ways_with_floats_change_no_bit(request: pytest.FixtureRequest) -> None:
    d, tensors, said = model(3)
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, 20)
    decoder = loaded(d, tensors, said, 2, "", len(tokens))
    noise = lambda: _native.gumbel(7, 3, np.arange(1000, dtype=np.uint32))  # noqa: E731
    logits = np.random.default_rng(3).normal(size=300).astype(np.float32)
    draw = lambda: [_native.sample(logits, None, 0, 0, 300, 1.0, 50, 0.7, seed, 5) for seed in range(50)]  # noqa: E731
    expected = logits_of(decoder, tokens, 20), noise(), draw()
    mode = request.getfixturevalue("foreign_mode")
    before = mode()
    found = logits_of(decoder, tokens, 20), noise(), draw()
    assert mode() == before
    assert platform.machine() != "x86_64" or before & 0xE040 == 0xE040
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]
