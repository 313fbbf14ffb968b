"""The codings of depth, normals, segmentation and edges invert, within the stated errors."""

from __future__ import annotations

import numpy as np

from mgpt_edge.finetune.mini.world import dense, render, sample_scene

SCENE = sample_scene(4, solids=3)
FRAME = render(SCENE, 128, 96)


def test_depth_comes_back_in_metres() -> None:
    assert dense.NEAREST < FRAME.depth.min() < FRAME.depth.max() < dense.FARTHEST
    back = dense.depth_of_picture(dense.depth_picture(FRAME.depth))
    assert np.abs(back / FRAME.depth - 1).max() < 0.0042


def test_normals_come_back_in_degrees() -> None:
    back = dense.normals_of_picture(dense.normals_picture(FRAME.normals))
    angle = np.degrees(np.arccos(np.clip((back * FRAME.normals).sum(2), -1, 1)))
    assert angle.max() < 0.5


def test_classes_come_back() -> None:
    indices = dense.classes(SCENE, FRAME)
    assert {dense.CLASSES[i] for i in np.unique(indices)} == {"floor", "wall", *(s.shape for s in SCENE.solids)}
    noisy = dense.classes_picture(indices).astype(int) + np.random.default_rng(0).integers(-20, 21, (*indices.shape, 3))
    np.testing.assert_array_equal(dense.classes_of_picture(noisy.clip(0, 255).astype(np.uint8)), indices)


def test_edges_are_thin_and_where_things_end() -> None:
    found = dense.edges(FRAME)
    assert 0.01 < found.mean() < 0.15
    changes = FRAME.segments[:, :-1] != FRAME.segments[:, 1:]
    assert found[:, :-1][changes].all()
    np.testing.assert_array_equal(dense.edges_of_picture(dense.edges_picture(found)), found)


def test_the_whole_table_is_within_the_depth_coding() -> None:
    for width, height in ((64, 256), (256, 64)):
        depth = render(sample_scene(0), width, height).depth
        assert dense.NEAREST < depth.min() < depth.max() < dense.FARTHEST
