"""Every figure of the small checkpoint, one line each: what its card says and what a training is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpt_edge.finetune import fidelity
from mgpt_edge.finetune.draw import Sampling
from mgpt_edge.finetune.fidelity import Share, asked
from mgpt_edge.finetune.world import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgpt_edge.finetune.mini import Mini

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
Line = tuple[str, str]
"""What was measured, and the figure."""


def judge(mini: Mini) -> Iterator[Line]:
    """How often the judge reads held-back renders right: the ceiling of every figure it gives."""
    reader = mini.judge
    for size in mini.plan.albums:
        pictures = mini.pictures(size, "validation")
        pictures.render(mini.processes)
        readings = reader.read(pictures.load())
        right = sum(reading.shows(pictures.scene(i)) for i, reading in enumerate(readings))
        yield f"judge, renders of {size[0]}x{size[1]}", str(Share(right, len(readings)))


def sweep(mini: Mini, count: int, sampling: Sampling) -> Iterator[Line]:
    """Fidelity by guidance, at the newest stage's square size."""
    painter, reader = mini.painter(), mini.judge
    side = mini.trained_decoder()[0].side
    for guidance in GUIDANCES:
        guided = Sampling(guidance, sampling.top_k, sampling.temperature)
        for name, scenes in _asked(count).items():
            share = fidelity.text_to_image(painter, reader, scenes, (side, side), guided)
            yield f"guidance {guidance:g}, {name}", str(share)


def drawing(mini: Mini, count: int, sampling: Sampling) -> Iterator[Line]:
    """Fidelity at every size that the newest stage draws."""
    painter, reader = mini.painter(), mini.judge
    for size in mini.trained_decoder()[0].sizes:
        for name, scenes in _asked(count).items():
            share = fidelity.text_to_image(painter, reader, scenes, size, sampling)
            yield f"{size[0]}x{size[1]}, {name}", str(share)


def seeing(mini: Mini, count: int, sampling: Sampling, side: int) -> Iterator[Line]:
    """Dense answers, guided drawing, edits and questions on held-back pictures of one size."""
    painter, reader = mini.painter(), mini.judge
    album = mini.album((side, side), "validation", {*KINDS, "edited"})
    yield "depth, mean relative error", f"{fidelity.depth(painter, album, count):.3f}"
    yield "normals, mean angle", f"{fidelity.normals(painter, album, count):.1f} degrees"
    yield "segmentation, mean IoU", f"{fidelity.segmentation(painter, album, count):.3f}"
    for kind in ("edges", "depth", "segmentation"):
        yield f"{kind} to picture", str(fidelity.guided_by(painter, reader, album, kind, count, sampling))
    yield "edits", str(fidelity.edit(painter, reader, album, count, sampling))
    yield "questions", str(fidelity.answers(painter, album, count))


def _asked(count: int) -> dict[str, list[fidelity.Scene]]:
    return {
        "one solid": asked("test", 1, count),
        "two solids": asked("test", 2, count),
        "held-out pair": asked("held_out", 1, count),
    }
