"""Pictures from words, and pictures changed or conditioned by another."""

from __future__ import annotations

from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK, READ_OFF, Task

_CONDITIONED = (
    "Generate an image according to the provided image, and according to the following caption:\n"
    f"{{prompt}} {IMAGE_MARK}"
)

TEXT_TO_IMAGE = Task(
    name="text-to-image",
    order=0,
    template="Generate an image of {width}x{height} according to the following prompt:\n{prompt}",
    given="words",
)
EDIT = Task(name="edit", order=6, template=f"{{instruction}} {IMAGE_MARK}", given="picture", sampling=READ_OFF)
# Its maintainers want guidance above 3 and top-k from 2000 (Lumina-mGPT#25), which the family's defaults are.
RECONSTRUCT = Task(name="reconstruct", order=7, template=f"No edit. {IMAGE_MARK}", given="picture")
FROM_EDGES = Task(name="from-edges", order=8, template=_CONDITIONED, given="picture", sampling=READ_OFF)
FROM_DEPTH = Task(name="from-depth", order=9, template=_CONDITIONED, given="picture", sampling=READ_OFF)
FROM_SEGMENTATION = Task(name="from-segmentation", order=10, template=_CONDITIONED, given="picture", sampling=READ_OFF)
