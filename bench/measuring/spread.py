"""How much measurements scatter: nine tenths of them, which a bench prints as JSON beside each median."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def nine_tenths(values: Iterable[float]) -> list[float]:
    """Below the first lies a twentieth of the values, above the second another."""
    return [float(edge) for edge in np.quantile(list(values), (0.05, 0.95))]


def summary(name: str, values: Iterable[float], digits: int = 6) -> dict[str, float | list[float]]:
    """`name`: the median; `name_spread`: nine tenths of the values."""
    every = list(values)
    edges = [round(edge, digits) for edge in nine_tenths(every)]
    return {name: round(statistics.median(every), digits), f"{name}_spread": edges}


def joined(runs: Sequence[Any], *, spread: bool = False) -> Any:
    """Facts of several runs of a bench as one: medians of numbers, and spreads that cover every run's."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: joined([run[key] for run in runs], spread=spread or str(key).endswith("_spread")) for key in first}
    if isinstance(first, list) and spread:
        return [min(low for low, _ in runs), max(high for _, high in runs)]
    if isinstance(first, list):
        return [joined(of) for of in zip(*runs, strict=True)]
    if isinstance(first, int | float) and not isinstance(first, bool):
        return statistics.median(runs)
    return first
