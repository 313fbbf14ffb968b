"""Which engines a checkpoint can be exported for, and in which precisions."""

from __future__ import annotations

from mgpt_edge.export.lower.lowering import lowering_of
from mgpt_edge.runtime.engines import engine_kinds


def engines() -> dict[str, tuple[str, ...]]:
    """Returns the precisions of each engine, the best engine first."""
    return {name: lowering_of(name).precisions for name in engine_kinds()}


def best_engine(precision: str) -> str:
    """Returns the first engine that has the precision, or `cpu`, which will say that it has none of that name."""
    return next((engine for engine, names in engines().items() if precision in names), "cpu")
