"""What can be read off a picture, drawn as another."""

from __future__ import annotations

from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK, READ_OFF, Task

DEPTH = Task(name="depth", order=1, template=f"Depth estimation. {IMAGE_MARK}", given="picture", sampling=READ_OFF)
NORMALS = Task(
    name="normals", order=2, template=f"Surface normal estimation. {IMAGE_MARK}", given="picture", sampling=READ_OFF
)
SEGMENTATION = Task(
    name="segmentation", order=3, template=f"Segmentic segmentation. {IMAGE_MARK}", given="picture", sampling=READ_OFF
)
POSE = Task(name="pose", order=4, template=f"Human pose estimation. {IMAGE_MARK}", given="picture", sampling=READ_OFF)
DETECT = Task(name="detect", order=5, template=f"Detect: {{object}} {IMAGE_MARK}", given="picture", sampling=READ_OFF)
