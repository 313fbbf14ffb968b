"""Every figure of the small checkpoint, one line each: what its card says and what a training is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mgpt_edge.finetune.mini import fidelity
from mgpt_edge.finetune.mini.draw import Sampling
from mgpt_edge.finetune.mini.fidelity import Share, asked
from mgpt_edge.finetune.mini.world import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from mgpt_edge.finetune.mini.album import Album
    from mgpt_edge.finetune.mini.fidelity import Artist
    from mgpt_edge.finetune.mini.judge import Judge
    from mgpt_edge.finetune.mini.pictures import Pictures
    from mgpt_edge.finetune.mini.plan import Size
    from mgpt_edge.finetune.mini.world import Scene

CONDITIONS = ("edges", "depth", "segmentation")
"""Kinds of pictures that pictures are drawn after."""
GUIDANCES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
UNSEEN = 300
Line = tuple[str, str]
"""What was measured, and the figure."""


def judge(reader: Judge, albums: Iterable[Pictures]) -> Iterator[Line]:
    """How often the judge reads held-back renders right: the ceiling of every figure it gives."""
    for pictures in albums:
        scenes = [pictures.scene(index) for index in range(pictures.count)]
        size = f"{pictures.width}x{pictures.height}"
        yield f"judge, renders of {size}", str(_read(reader, pictures.load(), scenes))
        unseen = asked("held_out", 1, UNSEEN)
        renders = np.stack([render(scene, pictures.width, pictures.height).picture for scene in unseen])
        yield f"judge, held-out pair, {size}", str(_read(reader, renders, unseen))


def _read(reader: Judge, pixels: NDArray[np.uint8], scenes: list[Scene]) -> Share:
    readings = reader.read(pixels)
    return Share(sum(reading.shows(scene) for reading, scene in zip(readings, scenes, strict=True)), len(scenes))


def sweep(artist: Artist, reader: Judge, size: Size, count: int, sampling: Sampling) -> Iterator[Line]:
    """Fidelity by guidance."""
    for guidance in GUIDANCES:
        guided = Sampling(guidance, sampling.top_k, sampling.temperature)
        for name, scenes in _asked(count).items():
            right = fidelity.text_to_image(artist, reader, scenes, size, guided)
            yield f"guidance {guidance:g}, {name}", str(Share.of_all(right))


def drawing(artist: Artist, reader: Judge, sizes: Iterable[Size], count: int, sampling: Sampling) -> Iterator[Line]:
    """Fidelity at every size."""
    for size in sizes:
        for name, right in drawn(artist, reader, size, count, sampling).items():
            yield f"{size[0]}x{size[1]}, {name}", str(Share.of_all(right))


def drawn(artist: Artist, reader: Judge, size: Size, count: int, sampling: Sampling) -> dict[str, NDArray[np.bool_]]:
    """What was asked for, and which pictures show it."""
    return {
        name: fidelity.text_to_image(artist, reader, scenes, size, sampling) for name, scenes in _asked(count).items()
    }


def seeing(artist: Artist, reader: Judge, album: Album, count: int, sampling: Sampling) -> Iterator[Line]:
    """Dense answers, guided drawing, edits and questions on held-back pictures of one size."""
    yield "depth, mean relative error", f"{fidelity.depth(artist, album, count):.3f}"
    yield "normals, mean angle", f"{fidelity.normals(artist, album, count):.1f} degrees"
    yield "segmentation, mean IoU", f"{fidelity.segmentation(artist, album, count):.3f}"
    for kind in CONDITIONS:
        yield f"{kind} to picture", str(fidelity.guided_by(artist, reader, album, kind, count, sampling))
    yield "edits", str(fidelity.edit(artist, reader, album, count, sampling))
    yield "questions", str(fidelity.answers(artist, album, count))


def _asked(count: int) -> dict[str, list[Scene]]:
    return {
        "one solid": asked("test", 1, count),
        "two solids": asked("test", 2, count),
        "held-out pair": asked("held_out", 1, count),
    }
