"""Answers in words, in pictures, or in both."""

from __future__ import annotations

from mgpt_edge.runtime.family.tasks.task import IMAGE_MARK, Task

DESCRIBE = Task(name="describe", order=11, template=f"Describe the image in detail. {IMAGE_MARK}", given="conversation")
CHAT = Task(
    name="chat",
    order=12,
    template="{prompt}",
    given="conversation",
    sampling={"guidance": 1.0, "text_top_k": 5},
)
