"""The tabletop world: the same seed gives the same picture, and what is said about it is true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt_edge.finetune.mini.world import COLORS, FLOORS, HELD_OUT, SHAPES, Scene, Solid, captions, render, sample_scene
from mgpt_edge.finetune.mini.world.camera import EYE, camera_axes, project, standing_at
from mgpt_edge.finetune.mini.world.render import FIRST_SOLID_CLASS
from mgpt_edge.finetune.mini.world.scene import relation
from mgpt_edge.finetune.mini.world.solids import FAR, bounding_sphere, cube_side, intersect


def one(shape: str, x: float = 0.1, y: float = -0.2, yaw: float = 0.3) -> Scene:
    return Scene((Solid(shape, "red", "large", "shiny", x, y, yaw),), "gray", "left")


def test_same_seed_same_picture() -> None:
    scene = sample_scene(5)
    assert scene == sample_scene(5)
    assert scene != sample_scene(5, "test")
    np.testing.assert_array_equal(render(scene, 64, 96).picture, render(scene, 64, 96).picture)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 64), (64, 128)])
def test_frame_shapes(width: int, height: int) -> None:
    frame = render(sample_scene(1), width, height)
    assert frame.picture.shape == frame.normals.shape == (height, width, 3)
    assert frame.depth.shape == frame.segments.shape == (height, width)
    assert frame.picture.dtype == frame.segments.dtype == np.uint8
    np.testing.assert_allclose(np.linalg.norm(frame.normals, axis=2), 1, atol=1e-4)


def test_size_must_be_a_multiple_of_32() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        render(sample_scene(0), 100, 128)


def test_sphere_depth_and_normals_are_analytic() -> None:
    scene = one("sphere")
    frame = render(scene, 128, 128)
    solid = scene.solids[0]
    inside = frame.segments == FIRST_SOLID_CLASS
    # The middle of the ray at [2r, 2c] of the doubled picture.
    rows, columns = np.nonzero(inside)
    focal = project(1.0, 0.0, 0.0, 256, 256)[2]  # only to be sure that depth is in metres
    assert 5 < focal < 8
    points = unproject(frame.depth, rows, columns, 128)
    middle = np.array([solid.x, solid.y, solid.radius])
    distance = np.linalg.norm(points - middle, axis=1)
    np.testing.assert_allclose(distance, solid.radius, atol=2e-3)
    expected = (points - middle) / distance[:, None] @ (camera_axes() * np.array([[1], [1], [-1]])).T
    assert np.abs(frame.normals[inside] - expected).max() < 0.02


def unproject(depth: np.ndarray, rows: np.ndarray, columns: np.ndarray, side: int) -> np.ndarray:
    """Points of the world under pixels of a square frame."""
    right, _, forward = project(1.0, 0.0, 0.0, 2 * side, 2 * side)
    focal = (right - side) * forward
    x, y = (2 * columns + 0.5 - side) / focal, (side - 2 * rows - 0.5) / focal
    rays = np.stack([x, y, np.ones_like(x)], axis=1) @ camera_axes()
    return EYE + depth[rows, columns, None] * rays


def test_floor_depth_is_the_plane() -> None:
    frame = render(one("cone"), 64, 64)
    rows, columns = np.nonzero(frame.segments == 0)
    np.testing.assert_allclose(unproject(frame.depth, rows, columns, 64)[:, 2], 0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_rays_from_afar_hit_the_surface(shape: str) -> None:
    solid = one(shape, 0.0, 0.0).solids[0]
    height, radius = bounding_sphere(solid)
    rng = np.random.default_rng(0)
    towards = rng.normal(size=(3, 500)).astype(np.float32)
    towards /= np.linalg.norm(towards, axis=0)
    towards[2] = -np.abs(towards[2])
    origin = np.array([[0], [0], [height]], np.float32) - 4 * towards
    t, normal = intersect(solid, origin, towards)
    assert (t < FAR).all()
    point = origin + t * towards
    assert (np.linalg.norm(point - np.array([[0], [0], [height]]), axis=0) < radius + 1e-3).all()
    assert ((normal * towards).sum(0) < 1e-3).all()
    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-3)


@given(
    st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), st.floats(0, 1), st.sampled_from([(128, 128), (256, 128), (128, 192)])
)
def test_where_a_pixel_stands_is_where_it_was_seen(x: float, y: float, z: float, size: tuple[int, int]) -> None:
    column, row, _ = project(x, y, z, *size)
    assert standing_at(column, row, z, *size) == pytest.approx((x, y), abs=1e-4)


def test_cube_top_is_flat() -> None:
    solid = one("cube", 0.0, 0.0).solids[0]
    t, normal = intersect(solid, np.array([[0.05], [0.1], [5]], np.float32), np.array([[0], [0], [-1]], np.float32))
    assert t[0] == pytest.approx(5 - cube_side(solid.radius), abs=1e-5)
    np.testing.assert_allclose(normal[:, 0], [0, 0, 1], atol=1e-6)


def test_mirror_is_the_mirrored_scene() -> None:
    scene = sample_scene(3, solids=2)
    picture, mirrored = render(scene, 96, 96).picture, render(scene.mirrored(), 96, 96).picture
    difference = np.abs(picture[:, ::-1].astype(int) - mirrored)
    assert np.percentile(difference, 99) <= 2


def test_every_solid_is_visible_in_its_color() -> None:
    for seed in range(20):
        scene = sample_scene(seed, solids=2)
        segments = render(scene, 128, 128).segments
        for index in range(2):
            assert (segments == FIRST_SOLID_CLASS + index).sum() > 80


def test_crowded_scenes_are_found() -> None:
    for seed in range(5):
        assert len(sample_scene(seed, solids=4).solids) == 4


def test_held_out_pairs_are_held_out() -> None:
    for seed in range(300):
        for solid in sample_scene(seed, solids=2).solids:
            assert (solid.color, solid.shape) not in HELD_OUT
        first = sample_scene(seed, "held_out", solids=1).solids[0]
        assert (first.color, first.shape) in HELD_OUT


def test_relations_are_opposite() -> None:
    left, right = Solid("cube", "red", "small", "matte", -1, 0), Solid("cone", "blue", "small", "matte", 1, 0.2)
    assert (relation(left, right), relation(right, left)) == ("left", "right")
    behind = Solid("cone", "blue", "small", "matte", 0.1, 1)
    front = Solid("cone", "red", "small", "matte", 0.0, -1)
    assert (relation(front, behind), relation(behind, front)) == ("front", "behind")
    assert (
        relation(Solid("cone", "red", "small", "matte", 0.5, 0.5), Solid("cone", "red", "small", "matte", 0, 0)) is None
    )


def test_captions_name_what_is_there() -> None:
    rng = np.random.default_rng(0)
    for seed in range(200):
        scene = sample_scene(seed, solids=1 + seed % 2)
        (caption,) = captions(scene, rng)
        said = caption.lower()
        for solid in scene.solids:
            assert f"{solid.color} {solid.shape}" in said
        others = {c for c in COLORS if c not in {s.color for s in scene.solids}}
        assert not others & set(said.replace(",", " ").replace(".", " ").split())
        assert not {f"{f} floor" for f in FLOORS if f != scene.floor} & {said[-11:].strip(" .")}


def test_captions_say_where_truly() -> None:
    rng = np.random.default_rng(1)
    words = {"left of": "left", "right of": "right", "in front of": "front", "behind": "behind"}
    seen = set()
    for seed in range(150):
        scene = sample_scene(seed, solids=2)
        said = captions(scene, rng)[0].lower()
        first, second = sorted(scene.solids, key=lambda s: said.index(f"{s.color} {s.shape}"))
        for phrase, where in words.items():
            if phrase in said:
                assert relation(first, second) == where
                seen.add(where)
    assert seen == set(words.values())


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="'pink' is none of"):
        Solid("cube", "pink", "small", "matte", 0, 0)
    with pytest.raises(ValueError, match="1 to 4 solids"):
        Scene((), "gray", "left")
