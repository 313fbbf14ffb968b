"""The picture of a scene, with depth, normals and segmentation from the same rays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.mini.world.camera import EYE, camera_axes, focal_length, project
from mgpt_edge.finetune.mini.world.scene import LIGHTS, Scene, Solid
from mgpt_edge.finetune.mini.world.solids import FAR, Array, bounding_sphere, intersect

if TYPE_CHECKING:
    from numpy.typing import NDArray

WALL_Y = 2.6  # metres; the wall behind the table
FLOOR_CLASS, WALL_CLASS, FIRST_SOLID_CLASS = 0, 1, 2

# Linear light, not sRGB.
ALBEDO = {
    "red": (0.66, 0.025, 0.03),
    "orange": (0.86, 0.24, 0.012),
    "yellow": (0.88, 0.68, 0.03),
    "green": (0.035, 0.36, 0.05),
    "cyan": (0.03, 0.55, 0.62),
    "blue": (0.02, 0.07, 0.60),
    "purple": (0.28, 0.035, 0.50),
    "white": (0.90, 0.90, 0.88),
    "gray": (0.23, 0.235, 0.245),
    "brown": (0.20, 0.098, 0.045),
    "beige": (0.62, 0.50, 0.35),
    "black": (0.022, 0.022, 0.026),
}
WALL_ALBEDO = np.array([0.46, 0.52, 0.58], np.float32)
TOWARDS_LIGHT = {
    "left": (-0.68, -0.42, 0.78),
    "right": (0.68, -0.42, 0.78),
    "front": (0.0, -0.72, 0.70),
    "above": (0.0, -0.16, 1.0),
}
LIGHT_SAMPLES = tuple((math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8))
LIGHT_SPREAD = 0.11  # radius of the lamp as seen from the table, in radians
SUN, SKY = 0.80, 0.42


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Everything the rays found, at one size.

    Attributes:
        picture: [h, w, 3] uint8, sRGB.
        depth: [h, w] float32, metres from the camera along its axis.
        normals: [h, w, 3] float32, unit, in the camera's frame: x right, y up, z towards the camera.
        segments: [h, w] uint8: 0 floor, 1 wall, 2 + i for solid i of the scene.
    """

    picture: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]
    segments: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """The rays of one picture size, and the empty table as they see it; arrays are [3, h, w] or [h, w]."""

    direction: Array  # forward component 1, so that the distance along it is the depth
    focal: float  # pixels
    depth: Array
    point: Array
    normal: Array
    on_wall: NDArray[np.bool_]


@lru_cache(maxsize=8)
def _stage(width: int, height: int) -> _Stage:
    focal = focal_length(width, height)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / np.float32(focal)
    y = (height / 2 - np.arange(height, dtype=np.float32) - 0.5) / np.float32(focal)
    right, up, forward = camera_axes()
    direction = right[:, None, None] * x[None, None] + up[:, None, None] * y[None, :, None] + forward[:, None, None]
    to_floor = np.where(direction[2] < -1e-6, -EYE[2] / np.minimum(direction[2], -1e-6), FAR)
    to_wall = (WALL_Y - EYE[1]) / np.maximum(direction[1], 1e-6)
    on_wall = to_wall < to_floor
    depth = np.minimum(to_wall, to_floor).astype(np.float32)
    point = EYE[:, None, None] + depth * direction
    facing = np.where(on_wall, np.float32(0), np.float32(1))
    normal = np.stack([np.zeros_like(facing), facing - 1, facing])
    return _Stage(direction.astype(np.float32), focal, depth, point.astype(np.float32), normal, on_wall)


@lru_cache(maxsize=64)
def _empty_table(width: int, height: int, floor: str, light: str) -> tuple[Array, Array]:
    """Light that the empty table sends to the eye: from the sky and from the lamp, [3, h, w] each."""
    stage = _stage(width, height)
    x, y, z = stage.point
    # The corner between floor and wall is rounded, as in a photographer's studio.
    cove = np.clip(np.where(stage.on_wall, 1 - z / 0.9, 1 - (WALL_Y - y) / 0.9), 0, 1) ** 2 * 0.5
    wall_share = np.where(stage.on_wall, 1 - cove, cove)
    albedo = np.array(ALBEDO[floor], np.float32)[:, None, None] * (1 - wall_share)
    albedo = albedo + WALL_ALBEDO[:, None, None] * wall_share
    towards = _towards_light(light)
    lamp_x, lamp_y = float(towards[0]) * 0.9, float(towards[1]) * 0.6
    pool = 0.72 + 0.42 * np.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / 9.0)
    sky = SKY * (0.92 + 0.08 * np.clip(z, 0, 2))
    cosine = np.where(stage.on_wall, 0.35 + 0.65 * np.clip(-towards[1], 0, 1), towards[2])
    return (albedo * sky).astype(np.float32), (albedo * (SUN * cosine * pool)).astype(np.float32)


def _towards_light(light: str) -> Array:
    vector = np.array(TOWARDS_LIGHT[light], np.float32)
    return vector / np.float32(np.linalg.norm(vector))


@lru_cache(maxsize=len(LIGHTS))
def _lamp(light: str) -> Array:
    """Directions to points of the lamp, [8, 3]: several, so that shadows have soft edges."""
    towards = _towards_light(light)
    side = np.cross(towards, np.array([0, 1, 0], np.float32))
    side /= np.linalg.norm(side)
    other = np.cross(side, towards)
    return np.stack([towards + LIGHT_SPREAD * (a * side + b * other) for a, b in LIGHT_SAMPLES]).astype(np.float32)


def render(scene: Scene, width: int, height: int) -> Frame:
    """Traces one picture at twice the size and averages; depth, normals and segments are one ray a pixel.

    Args:
        scene: What stands on the table.
        width: Pixels, a multiple of 32.
        height: Pixels, a multiple of 32.
    """
    if width % 32 or height % 32 or min(width, height) < 32:
        msg = f"width and height must be multiples of 32, got {width}x{height}"
        raise ValueError(msg)
    stage = _stage(2 * width, 2 * height)
    depth, normal = stage.depth.copy(), stage.normal.copy()
    segments = np.where(stage.on_wall, np.uint8(WALL_CLASS), np.uint8(FLOOR_CLASS))
    for index, solid in enumerate(scene.solids):
        window = _window(stage, solid.x, solid.y, *bounding_sphere(solid))
        direction = stage.direction[(slice(None), *window)].reshape(3, -1)
        t, facing = intersect(solid, EYE[:, None], direction)
        part = depth[window]
        nearer = (t.reshape(part.shape) < part) & (t.reshape(part.shape) < FAR)
        part[nearer] = t.reshape(part.shape)[nearer]
        normal[(slice(None), *window)][:, nearer] = facing.reshape(3, *part.shape)[:, nearer]
        segments[window][nearer] = FIRST_SOLID_CLASS + index
    linear = _shade(scene, stage, depth, normal, segments)
    picture = _develop(linear)
    in_camera = np.einsum("ij,jhw->hwi", camera_axes() * np.array([[1], [1], [-1]], np.float32), normal[:, ::2, ::2])
    return Frame(picture, depth[::2, ::2].copy(), np.ascontiguousarray(in_camera), segments[::2, ::2].copy())


def _window(stage: _Stage, x: float, y: float, z: float, radius: float) -> tuple[slice, slice]:
    """Rows and columns that a ball of this middle and radius can cover."""
    height, width = stage.depth.shape
    column, row, forward = project(x, y, z, width, height)
    reach = radius * stage.focal / (forward - radius) * 1.05 + 2
    rows = slice(int(np.clip(row - reach, 0, height)), int(np.clip(row + reach + 1, 0, height)))
    return rows, slice(int(np.clip(column - reach, 0, width)), int(np.clip(column + reach + 1, 0, width)))


def _shade(scene: Scene, stage: _Stage, depth: Array, normal: Array, segments: NDArray[np.uint8]) -> Array:
    """Light that reaches the eye, [3, h, w]."""
    height, width = depth.shape
    sky, lamp = _empty_table(width, height, scene.floor, scene.light)
    open_sky, lit = np.ones((height, width), np.float32), np.ones((height, width), np.float32)
    for solid in scene.solids:
        _darken_table(scene.light, stage, solid, open_sky, lit)
    linear = sky * open_sky + lamp * lit
    for index, solid in enumerate(scene.solids):
        inside = segments == FIRST_SOLID_CLASS + index
        if inside.any():
            direction = stage.direction[:, inside]
            point = EYE[:, None] + depth[inside] * direction
            linear[:, inside] = _shade_solid(scene, solid, point, normal[:, inside], direction)
    return linear


def _darken_table(light: str, stage: _Stage, solid: Solid, open_sky: Array, lit: Array) -> None:
    """The solid's shadow, and the dark rim where it touches the floor."""
    middle, radius = bounding_sphere(solid)
    window = _window(stage, solid.x, solid.y, 0, 2.1 * solid.radius)
    x, y, z = stage.point[(slice(None), *window)]
    distance = np.sqrt((x - solid.x) ** 2 + (y - solid.y) ** 2 + z * z)
    closeness = np.clip(1 - (distance - 0.55 * solid.radius) / (1.3 * solid.radius), 0, 1)
    open_sky[window] *= 1 - 0.62 * closeness * closeness
    towards = _towards_light(light)
    reach = middle / float(towards[2])
    x, y = solid.x - reach * float(towards[0]), solid.y - reach * float(towards[1])
    window = _window(stage, x, y, 0, 1.35 * radius / float(towards[2]) + 0.1)
    point = stage.point[(slice(None), *window)].reshape(3, -1)
    blocked = np.zeros(point.shape[1], np.float32)
    for ray in _lamp(light):
        blocked += intersect(solid, point, ray[:, None])[0] < FAR
    lit[window] *= 1 - 0.93 / len(LIGHT_SAMPLES) * blocked.reshape(lit[window].shape)


def _shade_solid(scene: Scene, solid: Solid, point: Array, normal: Array, direction: Array) -> Array:
    towards = _towards_light(scene.light)[:, None]
    albedo = np.array(ALBEDO[solid.color], np.float32)[:, None]
    floor = np.array(ALBEDO[scene.floor], np.float32)[:, None]
    lit = np.ones(point.shape[1], np.float32)
    for other in scene.solids:
        if other is not solid:
            for ray in _lamp(scene.light)[::2]:
                lit -= np.float32(0.23) * (intersect(other, point, ray[:, None])[0] < FAR)
    upwards = 0.5 + 0.5 * normal[2]
    near_floor = 0.55 + 0.45 * np.clip(point[2] / solid.radius, 0, 1)
    cosine = np.clip((normal * towards).sum(0), 0, 1)
    ambient = SKY * near_floor * (0.35 + 0.65 * upwards) + 0.42 * floor * (1 - upwards)
    color = albedo * (ambient + SUN * 1.12 * cosine * lit)
    if solid.finish == "matte":
        return color
    view = -direction / np.sqrt((direction * direction).sum(0))
    facing = np.clip((normal * view).sum(0), 0, 1)
    mirrored = 2 * facing * normal - view
    gleam = np.clip((mirrored * towards).sum(0), 0, 1) ** 48 * lit
    window_light = np.clip((mirrored[2] - 0.25) / 0.5, 0, 1) * 0.30
    fresnel = 0.09 + 0.55 * (1 - facing) ** 4
    return color * (1 - 0.5 * fresnel) + 1.15 * gleam + fresnel * (window_light + 0.5 * floor * (mirrored[2] < 0))


_TO_SRGB = np.array(
    [round(255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055)) for v in np.linspace(0, 1, 4096)],
    np.uint8,
)


def _develop(linear: Array) -> NDArray[np.uint8]:
    """Averages 2x2 rays, rolls the highlights off and encodes as sRGB."""
    light = np.minimum(linear, np.float32(1.0))
    light = light[:, ::2, ::2] + light[:, 1::2, ::2] + light[:, ::2, 1::2] + light[:, 1::2, 1::2]
    return np.ascontiguousarray(
        _TO_SRGB[(light * np.float32(4095 / 4) + np.float32(0.5)).astype(np.int32)].transpose(1, 2, 0)
    )
