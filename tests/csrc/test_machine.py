from __future__ import annotations

import math

import pytest

from mgpt_edge.runtime import _native


def test_features_have_fixed_names() -> None:
    features = _native.cpu_features()
    x86 = {"avx2", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx_vnni", "amx_int8"}
    assert set(features) == x86 | {"neon", "dotprod"}
    assert all(isinstance(value, bool) for value in features.values())
    assert ("avx2" in _native.instruction_sets()) <= features["avx2"]


def test_bandwidth_is_positive() -> None:
    assert 0.05 < _native.read_bandwidth(1 << 22, 2, 0.02) < 10_000


@pytest.mark.parametrize(
    ("size", "threads", "seconds"),
    [(0, 1, 0.1), (-1, 1, 0.1), (64, 0, 0.1), (64, 2000, 0.1), (64, 1, 0.0), (64, 1, math.nan), (64, 1, math.inf)],
)
def test_bandwidth_checks_its_numbers(size: int, threads: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        _native.read_bandwidth(size, threads, seconds)


def test_bandwidth_without_memory() -> None:
    with pytest.raises(MemoryError):
        _native.read_bandwidth(2**62, 1, 0.1)
    with pytest.raises(MemoryError):
        _native.read_bandwidth(2**63 - 1, 1, 0.1)
