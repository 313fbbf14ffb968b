"""How much measurements scatter: their middle half, which a bench prints as JSON beside each median."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def quartiles(values: Iterable[float]) -> list[float]:
    """Below the first lies a quarter of the values, above the second another."""
    return [float(edge) for edge in np.quantile(list(values), (0.25, 0.75))]


def summary(name: str, values: Iterable[float], digits: int = 6) -> dict[str, float | list[float]]:
    """`name`: the median; `name_spread`: the middle half."""
    every = list(values)
    edges = [round(edge, digits) for edge in quartiles(every)]
    return {name: round(statistics.median(every), digits), f"{name}_spread": edges}
