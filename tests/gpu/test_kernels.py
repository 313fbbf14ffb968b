"""Every kernel on a GPU against NumPy: the same tokens, the same bytes. `make test-gpu` runs this and more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.gpu import drawing, memory
from tests.gpu.library import FORMATS, RESULT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gpu.library import Library

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("count", "largest"), [(12_000, 40), (1_500, 3_000), (40, 30_000)])
def test_the_sampler_equals_the_specification(library: Library, count: int, largest: int) -> None:
    rng = np.random.default_rng(41)
    drawing.check_sampler(library, [drawing.random_case(rng, largest) for _ in range(count)])


def test_whole_vocabularies(library: Library) -> None:
    drawing.check_sampler(library, drawing.large_cases(np.random.default_rng(42)))


def test_launches_agree(library: Library) -> None:
    """What depends on the order of threads would differ between launches."""
    cases = drawing.large_cases(np.random.default_rng(43))
    requests, _logits = drawing.requests_of(library, cases)
    first = None
    for _ in range(200):
        results = library.put(np.zeros(len(cases), RESULT))
        library.run("sample", requests, len(cases), results)
        first = results.read() if first is None else first
        np.testing.assert_array_equal(results.read(), first)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_pictures_draw_themselves(library: Library, width: int, guided: bool) -> None:
    for seed in range(10):
        drawing.check_pictures(library, np.random.default_rng(seed), pictures=4, width=width, guided=guided)


def test_a_picture_in_a_graph(library: Library) -> None:
    from tests.gpu import gpu

    # The first launch of a kernel loads it: not while a graph is captured.
    drawing.check_pictures(library, np.random.default_rng(0), pictures=1, width=1, guided=True)
    memory.check_embedding(library, np.random.default_rng(0))

    def repeat(one_pass: Callable[[], None], times: int) -> None:
        stream, graph = gpu.captured(library, one_pass, 1)
        for _ in range(times):
            graph.launch(stream)
        stream.synchronize()

    for seed in range(20):
        drawing.check_captured(library, np.random.default_rng(seed), repeat)


@pytest.mark.parametrize("name", FORMATS)
def test_caches_hold_the_bytes(library: Library, name: str) -> None:
    for seed in range(40):
        memory.check_caches(library, np.random.default_rng(seed), name)


def test_embeddings_and_refusals(library: Library) -> None:
    for seed in range(10):
        memory.check_embedding(library, np.random.default_rng(seed))
    memory.check_refusals(library)
