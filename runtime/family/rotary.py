"""Rotary position tables, computed once for every engine and for the PyTorch reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rotary_tables(positions: int, head_dim: int, theta: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines [positions, head_dim / 2] for the half-split ("rotate half") layout.

    Angles are float32 products, as in the model family's own code; cosine and sine are taken in
    float64 and rounded, so that the tables have the same bits on every machine (RoFormer, arXiv 2104.09864).
    """
    frequencies = (theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
