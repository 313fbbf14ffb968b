"""The library on a GPU, or the reason why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gpu.library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    cupy = pytest.importorskip("cupy", reason="needs cupy, for memory on a GPU")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(f"needs an NVIDIA GPU and its driver: {error}")
    from tests.gpu import gpu

    if not gpu.PATH.exists():
        pytest.skip(f"needs {gpu.PATH}, which `make test-gpu` builds")
    return gpu.open_library()
