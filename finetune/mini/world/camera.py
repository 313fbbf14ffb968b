"""Where the camera stands, and where it sees a point of the world."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EYE = np.array([0.0, -6.0, 2.9], np.float32)
TARGET = np.array([0.0, 0.0, 0.42], np.float32)
VIEW_WIDTH = 2.9  # metres seen at the target along the picture's shorter side
DISTANCE = float(np.linalg.norm(TARGET - EYE))


def camera_axes() -> NDArray[np.float32]:
    """Rows: right, up, forward."""
    forward = (TARGET - EYE) / DISTANCE
    right = np.array([1, 0, 0], np.float32)
    return np.stack([right, np.cross(right, forward), forward]).astype(np.float32)


_COS, _SIN = float(camera_axes()[2, 1]), float(-camera_axes()[2, 2])


def seen_at(x: float, y: float, z: float) -> tuple[float, float, float]:
    """A point (metres) -> how far right and up it is seen, in shares of its depth, and its depth in metres."""
    along, above = y - float(EYE[1]), z - float(EYE[2])
    depth = along * _COS - above * _SIN
    return x / depth, (along * _SIN + above * _COS) / depth, depth


def focal_length(width: int, height: int) -> float:
    """Pixels."""
    return DISTANCE / VIEW_WIDTH * min(width, height)


def project(x: float, y: float, z: float, width: int, height: int) -> tuple[float, float, float]:
    """Where a point of the world (metres) is seen: column and row in pixels, and its depth in metres."""
    right, up, depth = seen_at(x, y, z)
    focal = focal_length(width, height)
    return width / 2 + right * focal, height / 2 - up * focal, depth


def standing_at(column: float, row: float, z: float, width: int, height: int) -> tuple[float, float]:
    """Where the point of height `z` (metres) stands that is seen at a pixel: `project` turned back."""
    focal = focal_length(width, height)
    right, up, forward = camera_axes()
    ray = forward + (column - width / 2) / focal * right + (height / 2 - row) / focal * up
    x, y, _ = EYE + (z - EYE[2]) / ray[2] * ray
    return float(x), float(y)


def apart(near: tuple[float, float, float], far: tuple[float, float, float]) -> float:
    """Distance at which two points are seen (`seen_at`), in shares of the depth."""
    return math.hypot(near[0] - far[0], near[1] - far[1])
