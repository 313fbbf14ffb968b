"""Where rays meet the solids: analytic, in single precision, in the solid's own frame."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mgpt_edge.finetune.mini.world.scene import Solid

Array = NDArray[np.float32]
EPSILON = 1e-4
FAR = np.float32(1e9)


def bounding_sphere(solid: Solid) -> tuple[float, float]:
    """Height of the middle above the floor and radius, metres."""
    r = solid.radius
    if solid.shape == "sphere":
        return r, r
    if solid.shape == "cube":
        return cube_side(r) / 2, cube_side(r) / 2 * math.sqrt(3)
    height, base = (cylinder_height(r), cylinder_radius(r)) if solid.shape == "cylinder" else (2 * r, r)
    return height / 2, math.hypot(height / 2, base)


def cube_side(radius: float) -> float:
    """Metres; a cube that looks as large as the sphere of this radius."""
    return 1.55 * radius


def cylinder_radius(radius: float) -> float:
    """Metres."""
    return 0.8 * radius


def cylinder_height(radius: float) -> float:
    """Metres."""
    return 1.7 * radius


def intersect(solid: Solid, origin: Array, direction: Array) -> tuple[Array, Array]:
    """First hit in front of the origin.

    Args:
        solid: In the world's frame.
        origin: [3, n] or [3, 1], metres in the world's frame.
        direction: [3, n] or [3, 1].

    Returns:
        Distance in units of the direction's length ([n], FAR where the ray misses) and outward normals ([3, n]).
    """
    origin = origin - np.array([[solid.x], [solid.y], [0]], np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        if solid.shape == "sphere":
            return _sphere(solid.radius, origin, direction)
        if solid.shape == "cube":
            return _cube(cube_side(solid.radius) / 2, solid.yaw, origin, direction)
        if solid.shape == "cylinder":
            return _cylinder(cylinder_radius(solid.radius), cylinder_height(solid.radius), origin, direction)
        return _cone(solid.radius, 2 * solid.radius, origin, direction)


def _nearest_root(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Both roots of a t² + 2 b t + c, the smaller first; FAR where there are none."""
    discriminant = b * b - a * c
    hit = discriminant > 0
    root = np.sqrt(np.where(hit, discriminant, 0))
    low, high = (-b - root) / a, (-b + root) / a
    return np.where(hit, np.minimum(low, high), FAR), np.where(hit, np.maximum(low, high), FAR)


def _ahead(t: Array, valid: Array | bool = True) -> Array:
    return np.where((t > EPSILON) & valid, t, FAR)


def _sphere(radius: float, origin: Array, direction: Array) -> tuple[Array, Array]:
    origin = origin - np.array([[0], [0], [radius]], np.float32)
    a = (direction * direction).sum(0)
    low, high = _nearest_root(a, (origin * direction).sum(0), (origin * origin).sum(0) - np.float32(radius * radius))
    t = np.minimum(_ahead(low), _ahead(high))
    return t, (origin + np.where(t < FAR, t, 0) * direction) / np.float32(radius)


def _cube(half: float, yaw: float, origin: Array, direction: Array) -> tuple[Array, Array]:
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
    o, d = turn @ (origin - np.array([[0], [0], [half]], np.float32)), turn @ direction
    inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
    near, far = (-np.sign(inverse) * half - o) * inverse, (np.sign(inverse) * half - o) * inverse
    enter, leave = near.max(0), far.min(0)
    t = _ahead(enter, enter <= leave)
    axis = near.argmax(0)
    normal = np.where(np.arange(3)[:, None] == axis, -np.sign(d), np.float32(0))
    return t, turn.T @ normal


def _cylinder(radius: float, height: float, origin: Array, direction: Array) -> tuple[Array, Array]:
    dx, dy, dz = direction
    ox, oy, oz = origin
    a, b = dx * dx + dy * dy, ox * dx + oy * dy
    side, _ = _nearest_root(np.maximum(a, np.float32(1e-12)), b, ox * ox + oy * oy - np.float32(radius * radius))
    z = oz + side * dz
    side = _ahead(side, (z >= 0) & (z <= height))
    top = (height - oz) / np.where(np.abs(dz) < 1e-9, np.float32(1e-9), dz)
    x, y = ox + top * dx, oy + top * dy
    top = _ahead(top, x * x + y * y <= radius * radius)
    t = np.minimum(side, top)
    point = origin + np.where(t < FAR, t, 0) * direction
    on_top = top < side
    zero = np.zeros_like(t)
    wall = np.stack([point[0] / np.float32(radius), point[1] / np.float32(radius), zero])
    return t, np.where(on_top, np.array([[0], [0], [1]], np.float32), wall)


def _cone(radius: float, height: float, origin: Array, direction: Array) -> tuple[Array, Array]:
    slope = np.float32((radius / height) ** 2)
    dx, dy, dz = direction
    ox, oy, oz = origin
    down = height - oz
    a = dx * dx + dy * dy - slope * dz * dz
    b = ox * dx + oy * dy + slope * down * dz
    c = ox * ox + oy * oy - slope * down * down
    low, high = _nearest_root(np.where(np.abs(a) < 1e-9, np.float32(1e-9), a), b, c)
    roots = []
    for t in (low, high):
        z = oz + t * dz
        roots.append(_ahead(t, (z >= 0) & (z <= height)))
    t = np.minimum(roots[0], roots[1])
    point = origin + np.where(t < FAR, t, 0) * direction
    normal = np.stack([point[0], point[1], slope * (height - point[2])])
    return t, normal / np.maximum(np.sqrt((normal * normal).sum(0)), np.float32(1e-6))
