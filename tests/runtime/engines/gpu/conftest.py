"""Our CUDA kernels, run in the memory of the tests' own process."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgpt_edge.runtime.engines.gpu import kernels as engine_kernels
from mgpt_edge.runtime.engines.gpu.kernels import PICTURES
from tests.csrc.cuda.test_device import compile_to

DEVICE = Path(__file__).parents[3] / "csrc" / "cuda" / "device.cpp"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The algorithms of the CUDA kernels, for this process' memory."""
    path = tmp_path_factory.mktemp("kernels") / "device.so"
    compile_to(path, "-O2", "-shared", "-fPIC", DEVICE)
    return ctypes.CDLL(str(path))


@pytest.fixture
def library(cuda, kernels, monkeypatch):
    """Our kernels are built in: each launch reads what the host passes at once, and runs on the stream's turn."""

    def launched(name, *places):
        """A call of which the arguments at `places` are (index, bytes) of the host's memory."""

        def launch(*arguments):
            given, stream = list(arguments[:-1]), arguments[-1]
            copies = {
                at: ctypes.create_string_buffer(ctypes.string_at(given[at].value, size), size) for at, size in places
            }
            for at, copy in copies.items():
                given[at] = ctypes.c_void_p(ctypes.addressof(copy))
            call = getattr(kernels, f"mgpt_cuda_{name}")
            cuda.enqueue(stream.value, lambda: (call(*given, stream), copies))
            return 0

        return launch

    calls = {
        "mgpt_cuda_append": launched("append", (2, 24)),
        "mgpt_cuda_step": launched("step", (0, PICTURES.itemsize)),
    }
    monkeypatch.setattr(engine_kernels, "kernel_library", lambda: SimpleNamespace(**calls))
