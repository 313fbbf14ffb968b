"""What stands on the table: solids, floor and light, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mgpt_edge.finetune.mini.world.camera import apart, seen_at

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")
FINISHES = ("matte", "shiny")
FLOORS = ("gray", "brown", "beige", "black")
LIGHTS = ("left", "right", "front", "above")
SPLITS = ("train", "validation", "test", "held_out")

# Pairs that no training scene shows; only the split "held_out" does.
HELD_OUT = frozenset({("cyan", "cylinder"), ("purple", "cone")})

RADIUS = {"small": 0.42, "large": 0.62}
MAX_SOLIDS = 4


@dataclass(frozen=True, slots=True)
class Solid:
    """One solid standing on the floor.

    Attributes:
        x: Metres to the right of the table's middle.
        y: Metres away from the camera.
        yaw: Radians about the vertical axis; only a cube shows it.
    """

    shape: str
    color: str
    size: str
    finish: str
    x: float
    y: float
    yaw: float = 0.0

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.shape, SHAPES),
            (self.color, COLORS),
            (self.size, SIZES),
            (self.finish, FINISHES),
        ):
            if value not in allowed:
                msg = f"{value!r} is none of {', '.join(allowed)}"
                raise ValueError(msg)

    @property
    def radius(self) -> float:
        """Metres; the sphere's radius, and the scale of the other shapes."""
        return RADIUS[self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """One to four solids, the first of which is the one a caption begins with."""

    solids: tuple[Solid, ...]
    floor: str
    light: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.solids) <= MAX_SOLIDS:
            msg = f"a scene has 1 to {MAX_SOLIDS} solids, got {len(self.solids)}"
            raise ValueError(msg)
        if self.floor not in FLOORS or self.light not in LIGHTS:
            msg = f"unknown floor {self.floor!r} or light {self.light!r}"
            raise ValueError(msg)

    def mirrored(self) -> Scene:
        """The scene in a mirror: left and right change places."""
        light = {"left": "right", "right": "left"}.get(self.light, self.light)
        solids = tuple(replace(solid, x=-solid.x, yaw=-solid.yaw) for solid in self.solids)
        return Scene(solids, self.floor, light)


def relation(one: Solid, other: Solid, margin: float = 0.3) -> str | None:
    """Where `one` stands, seen from `other`: left, right, front, behind; None where it would be a matter of taste.

    It is where neither direction is larger than the other by `margin` metres.
    """
    dx, dy = one.x - other.x, one.y - other.y
    if abs(abs(dx) - abs(dy)) < margin:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "front" if dy < 0 else "behind"


def sample_scene(seed: int, split: str = "train", solids: int | None = None) -> Scene:
    """The scene of this seed; the same seed gives another scene in another split.

    Args:
        seed: From 0.
        split: One of SPLITS.
        solids: How many; drawn from the seed when None.
    """
    if split not in SPLITS:
        msg = f"{split!r} is none of {', '.join(SPLITS)}"
        raise ValueError(msg)
    rng = np.random.default_rng([SPLITS.index(split), seed])
    count = solids if solids is not None else int(rng.choice([1, 2, 3, 4], p=[0.42, 0.40, 0.12, 0.06]))
    looks = _sample_looks(rng, count, held_out=split == "held_out")
    floor = FLOORS[rng.integers(len(FLOORS))]
    light = LIGHTS[rng.integers(len(LIGHTS))]
    attempts = 0
    while True:
        # Most attempts fail at once, so solids are only made where they are inside the picture.
        places = _places(rng, count)
        if all(map(_inside, looks, places)) and _apart(placed := list(map(_placed, looks, places))):
            return Scene(tuple(placed), floor, light)
        attempts += 1
        if attempts % 400 == 0:  # too crowded: one solid less is large
            looks = _with_one_smaller(looks)


def _sample_looks(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[str, str, str, str]]:
    """Distinct (color, shape) pairs with a size and a finish each."""
    looks: list[tuple[str, str, str, str]] = []
    while len(looks) < count:
        color, shape = COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
        if held_out and not looks:
            color, shape = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
        elif (color, shape) in HELD_OUT:
            continue
        if any((color, shape) == look[:2] for look in looks):
            continue
        looks.append((color, shape, SIZES[rng.integers(2)], FINISHES[rng.integers(2)]))
    return looks


def _with_one_smaller(looks: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    at = next((i for i, look in enumerate(looks) if look[2] == "large"), None)
    return [(*look[:2], "small", look[3]) if i == at else look for i, look in enumerate(looks)]


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Where so many solids stand: x and y in metres, yaw in radians."""
    x, y = (0.6, 0.6) if count == 1 else (0.95, 1.1)
    reach = (x, y, math.pi / 4) * count
    drawn = [-r + 2 * r * share for r, share in zip(reach, rng.random(3 * count).tolist(), strict=True)]
    return list(zip(drawn[::3], drawn[1::3], drawn[2::3], strict=True))


def _inside(look: tuple[str, str, str, str], place: tuple[float, float, float]) -> bool:
    """Whether a square picture shows the solid whole."""
    # Half the width that it shows grows with the distance from the camera.
    return abs(place[0]) + RADIUS[look[2]] <= 0.236 * (place[1] + 6.0)


def _placed(look: tuple[str, str, str, str], place: tuple[float, float, float]) -> Solid:
    color, shape, size, finish = look
    return Solid(shape, color, size, finish, *place)


def _apart(solids: list[Solid]) -> bool:
    """No two solids touch or hide one another, and every relation is plain."""
    for i, one in enumerate(solids):
        for other in solids[:i]:
            touch = math.hypot(one.x - other.x, one.y - other.y) < 1.15 * (one.radius + other.radius)
            if touch or relation(one, other) is None or _hidden(one, other):
                return False
    return True


def _hidden(one: Solid, other: Solid) -> bool:
    """Whether the nearer of two, seen as a disc, covers the middle of the other or comes close to it."""
    near, far = (one, other) if one.y < other.y else (other, one)
    seen = [seen_at(solid.x, solid.y, solid.radius) for solid in (near, far)]
    return apart(*seen) < near.radius / seen[0][2] + 0.25 * far.radius / seen[1][2]
