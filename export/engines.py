"""Which engines a checkpoint can be exported for, and in which precisions."""

from __future__ import annotations

from mgpt_edge.export.lower import cuda, tensorrt, tensorrt10
from mgpt_edge.export.lower.linears import PRECISIONS
from mgpt_edge.export.quantise import CALIBRATED

ENGINES: dict[str, tuple[str, ...]] = {
    "native": ("int8", "int4", "mixed"),
    "cpu": PRECISIONS,
    "rtx": tensorrt.PRECISIONS,
    "cuda": cuda.PRECISIONS,
    "tensorrt": tensorrt.PRECISIONS,
    "tensorrt10": tensorrt10.PRECISIONS,
}
"""Engine -> the precisions it has, the best engine first."""

NEED_STATISTICS = CALIBRATED | {"mixed"}
"""Precisions that nobody can export without knowing what the linears are given."""


def best_engine(precision: str) -> str:
    """The first engine that has the precision, or `cpu`, which has most and will say so."""
    return next((engine for engine, precisions in ENGINES.items() if precision in precisions), "cpu")
