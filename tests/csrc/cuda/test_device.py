"""The algorithms of the CUDA kernels, compiled for the CPU from the same headers, against NumPy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.gpu import drawing, memory
from tests.gpu.library import FORMATS, Library

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "csrc"


def compile_to(path: Path, *arguments: str | Path) -> Path:
    flags = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-I", str(SOURCES)]
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *map(str, arguments), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("device")
    path = compile_to(folder / "device.so", "-O2", "-shared", "-fPIC", HERE / "device.cpp")
    return Library(path, np.copy)


def cases(count: int, largest: int) -> Sequence[drawing.Case]:
    rng = np.random.default_rng(31)
    return [drawing.random_case(rng, largest) for _ in range(count)]


def test_the_sampler_equals_the_specification(library: Library) -> None:
    drawing.check_sampler(library, cases(3000, 40))
    drawing.check_sampler(library, cases(200, 3000))


def test_whole_vocabularies(library: Library) -> None:
    drawing.check_sampler(library, drawing.large_cases(np.random.default_rng(32)))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_pictures_draw_themselves(library: Library, width: int, guided: bool) -> None:
    for seed in range(8):
        drawing.check_pictures(library, np.random.default_rng(seed), pictures=3, width=width, guided=guided)


def test_a_picture_without_the_host(library: Library) -> None:
    def repeat(one_pass: Callable[[], None], times: int) -> None:
        for _ in range(times):
            one_pass()

    for seed in range(8):
        drawing.check_captured(library, np.random.default_rng(seed), repeat)


@pytest.mark.parametrize("name", FORMATS)
def test_caches_hold_the_bytes(library: Library, name: str) -> None:
    for seed in range(30):
        memory.check_caches(library, np.random.default_rng(seed), name)


def test_embeddings_and_refusals(library: Library) -> None:
    for seed in range(10):
        memory.check_embedding(library, np.random.default_rng(seed))
    memory.check_refusals(library)


def test_every_half_in_e4m3(library: Library) -> None:
    """The NumPy side first, against the definition's own numbers and their middles."""
    numbers = memory.e4m3_numbers()
    assert (numbers[[0, 1, 8, 126]] == [0, 2.0**-9, 2.0**-6, 448]).all()
    np.testing.assert_array_equal(memory.to_e4m3(numbers), np.arange(127))
    np.testing.assert_array_equal(memory.to_e4m3(-numbers), np.arange(127) | 0x80)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 16)
    shape = np.array([(1, 1, len(halves), 16, len(halves), FORMATS.index("e4m3"))], memory.SHAPE)
    fresh, cache = library.put(halves), library.put(np.zeros(halves.shape, np.uint8))
    ends = [library.put(np.array([end], np.int32)) for end in (0, len(halves))]
    library.run("append", library.blocks([(fresh, cache, None)]), 1, shape, *ends)
    np.testing.assert_array_equal(cache.read(), memory.to_e4m3(halves))


@pytest.mark.slow
def test_teams_of_threads_race_nowhere(tmp_path: Path) -> None:
    """Under ThreadSanitizer, which a missing barrier would wake."""
    sources = "-DMGPT_SET=portable", HERE / "block_race.cpp", SOURCES / "sampling" / "kernels.cpp"
    program = compile_to(tmp_path / "race", "-O1", "-g", "-fsanitize=thread", "-pthread", *sources)
    done = subprocess.run([program], check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
