"""What the family's models can be asked, a record a task, told in the exact words of their training."""

from __future__ import annotations

import sys
from functools import cache

from mgpt_edge.runtime.catalogue import catalogue
from mgpt_edge.runtime.family.tasks.task import Task


@cache
def tasks() -> dict[str, Task]:
    """Returns every task by its name."""
    return catalogue(sys.modules[__name__], Task)


def template(name: str) -> str:
    """Returns the question of a task, with the fields that a user fills and a mark for each picture."""
    return tasks()[name].template


def from_words() -> tuple[str, ...]:
    """Returns the names of those whose picture is drawn from words alone."""
    return tuple(name for name, task in tasks().items() if task.from_words)


def conversations() -> tuple[str, ...]:
    """Returns the names of those that are answered by text, pictures, or both."""
    return tuple(name for name, task in tasks().items() if task.converses)
