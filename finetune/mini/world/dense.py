"""Depth, normals, segmentation and edges as pictures, and back: one coding each, so that errors have a unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.mini.world.render import FIRST_SOLID_CLASS, FLOOR_CLASS, WALL_CLASS
from mgpt_edge.finetune.mini.world.scene import SHAPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.finetune.mini.world.render import Frame
    from mgpt_edge.finetune.mini.world.scene import Scene

KINDS = ("picture", "depth", "normals", "segmentation", "edges")
NEAREST, FARTHEST = 2.0, 16.0  # metres
CLASSES = ("floor", "wall", *SHAPES)
PALETTE = np.array(
    [(64, 64, 64), (160, 160, 160), (230, 60, 60), (60, 180, 75), (60, 100, 230), (240, 200, 40)], np.uint8
)
SHARP_TURN = math.cos(math.radians(25))
DEPTH_JUMP = 0.06  # of the nearer depth


def view(scene: Scene, frame: Frame, kind: str) -> NDArray[np.uint8]:
    """One of KINDS of a rendered scene, as a picture [height, width, 3]."""
    match kind:
        case "picture":
            return frame.picture
        case "depth":
            return depth_picture(frame.depth)
        case "normals":
            return normals_picture(frame.normals)
        case "segmentation":
            return classes_picture(classes(scene, frame))
        case "edges":
            return edges_picture(edges(frame))
    msg = f"{kind!r} is none of {', '.join(KINDS)}"
    raise ValueError(msg)


def depth_picture(depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Metres [h, w] -> gray [h, w, 3]: white is NEAREST, black FARTHEST, even steps of the logarithm."""
    share = np.log(FARTHEST / np.clip(depth, NEAREST, FARTHEST)) / math.log(FARTHEST / NEAREST)
    return np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, axis=2)


def depth_of_picture(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `depth_picture`, to 0.41 %; of a picture that is not gray, of its mean."""
    share = picture.astype(np.float32).mean(2) / 255
    return (FARTHEST * (NEAREST / FARTHEST) ** share).astype(np.float32)


def normals_picture(normals: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Unit vectors [h, w, 3] in the camera's frame -> each component from -1..1 to 0..255."""
    return np.rint((normals + 1) * 127.5).astype(np.uint8)


def normals_of_picture(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `normals_picture`, to half a degree; every vector has unit length."""
    vectors = picture.astype(np.float32) / 127.5 - 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), np.float32(1e-6))


def classes(scene: Scene, frame: Frame) -> NDArray[np.uint8]:
    """What each pixel belongs to, as an index into CLASSES [h, w]."""
    table = [FLOOR_CLASS, WALL_CLASS, *(FIRST_SOLID_CLASS + SHAPES.index(solid.shape) for solid in scene.solids)]
    return np.array(table, np.uint8)[frame.segments]


def classes_picture(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classes [h, w] -> their colors [h, w, 3]."""
    return PALETTE[indices]


def classes_of_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `classes_picture`: the class of the nearest color."""
    difference = picture[:, :, None].astype(np.int32) - PALETTE.astype(np.int32)
    return (difference * difference).sum(3).argmin(2).astype(np.uint8)


def edges(frame: Frame) -> NDArray[np.bool_]:
    """Where neighbours belong to different things, lie apart in depth, or face different ways, [h, w]."""
    found = np.zeros(frame.depth.shape, bool)
    for axis in (0, 1):
        here, after = _pairs(axis)
        depth = frame.depth
        turn = (frame.normals[here] * frame.normals[after]).sum(2) < SHARP_TURN
        jump = np.abs(depth[here] - depth[after]) > DEPTH_JUMP * np.minimum(depth[here], depth[after])
        found[here] |= turn | jump | (frame.segments[here] != frame.segments[after])
    return found


def edges_picture(found: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Edges [h, w] -> white on black [h, w, 3]."""
    return np.repeat(np.where(found, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)


def edges_of_picture(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The inverse of `edges_picture`."""
    return picture.mean(2) > 127.5


def _pairs(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all but the last, and all but the first, along an axis."""
    before = tuple(slice(None, -1) if a == axis else slice(None) for a in (0, 1))
    return before, tuple(slice(1, None) if a == axis else slice(None) for a in (0, 1))
