"""What a checkpoint cannot say itself: the sizes it was trained for, and how to sample from it."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mgpt_edge.export.shards import read_json
from mgpt_edge.runtime.errors import CheckpointError
from mgpt_edge.runtime.family.tasks import tasks

SOURCE = "mgpt.json"
SAMPLING = ("guidance", "top_k", "text_top_k", "temperature")

# Target size in pixels of the public checkpoints, by the last part of the repository's name.
TARGET_SIZES = {
    "Lumina-mGPT-7B-512": 512,
    "Lumina-mGPT-7B-512-MultiImage": 512,
    "Lumina-mGPT-7B-768": 768,
    "Lumina-mGPT-7B-768-Omni": 768,
    "Lumina-mGPT-7B-1024": 1024,
    "Lumina-mGPT-34B-512": 512,
    "Lumina-mGPT-2.0": 768,
    "Lumina-mGPT-2.0-Omni": 768,
    "Chameleon_7B_mGPT": 512,
    "Chameleon_34B_mGPT": 512,
}

# FP-SFT checkpoints were trained on captions and questions too, in either direction.
FLEXIBLE_TASKS = ("text-to-image", "describe", "chat")

# What the family's own scripts set otherwise than `Defaults`.
OTHER: dict[str, dict[str, Any]] = {"Lumina-mGPT-2.0": {"top_k": 4096}, "Lumina-mGPT-2.0-Omni": {"top_k": 4096}}

# Public checkpoints of the family that cannot be exported, and why: said before gigabytes are fetched.
UNSUPPORTED = {
    "Lumina-mGPT-7B-768-bnb-int4": (
        "its weights are packed by bitsandbytes; export Alpha-VLLM/Lumina-mGPT-7B-768 with --precision int4 instead"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """Settings used where a request gives none.

    Args:
        name: what `mgpt inspect` calls the checkpoint.
        target_size: side in pixels of the square it was trained for; None where nobody said (give --target-size).
        guidance: classifier-free guidance scale; 1 is none.
        top_k: candidates at an image code.
        temperature: of both modes.
        text_top_k: candidates at a text token.
        sizes: (width, height) pairs it was trained for; empty means the crop list of `target_size`.
        tasks: what it was trained for, each with the settings that differ from the task's own.

    Raises:
        CheckpointError: a value is of the wrong type or out of range.
    """

    name: str
    target_size: int | None = None
    guidance: float = 4.0
    top_k: int = 2000
    temperature: float = 1.0
    text_top_k: int = 10
    sizes: tuple[tuple[int, int], ...] = ()
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check("name", "a name", isinstance(self.name, str) and self.name != "")
        self._check("target_size", "a multiple of 32 pixels", self.target_size is None or _is_side(self.target_size))
        for key in ("guidance", "temperature"):
            value = getattr(self, key)
            self._check(key, "a finite number from 0", type(value) in {int, float} and 0 <= value < math.inf)
        for key in ("top_k", "text_top_k"):
            value = getattr(self, key)
            self._check(key, "a whole number from 1", type(value) is int and value >= 1)
        pairs = all(isinstance(size, tuple) and len(size) == 2 and all(map(_is_side, size)) for size in self.sizes)
        self._check("sizes", "pairs [width, height] of multiples of 32 pixels", pairs)
        self._check("tasks", "an object from tasks to their settings", _are_settings(self.tasks))
        for task, settings in self.tasks.items():
            if task not in tasks():
                msg = f"{SOURCE}: unknown task {task!r}; known: {', '.join(tasks())}"
                raise CheckpointError(msg)
            replace(self, tasks={}, **settings)  # checks them

    def sampling(self, task: str) -> dict[str, float]:
        """Guidance, top-k, text top-k and temperature of a task: the checkpoint's own, else the family's."""
        base = {key: getattr(self, key) for key in SAMPLING}
        return base | dict(tasks()[task].sampling) | self.tasks.get(task, {})

    def _check(self, key: str, expected: str, holds: bool) -> None:
        if not holds:
            msg = f"{SOURCE}: {key} must be {expected}, got {getattr(self, key)!r}"
            raise CheckpointError(msg)

    @classmethod
    def find(cls, folder: Path, source: str) -> Defaults:
        """Reads `mgpt.json` in `folder`; without it, what is known of the repository or folder called `source`."""
        known = known_name(source, TARGET_SIZES)
        if (folder / SOURCE).is_file():
            found = cls.from_json(read_json(folder / SOURCE), fallback_name=_last(source))
        elif known:
            found = cls(name=known, target_size=TARGET_SIZES[known], **OTHER.get(known, {}))
        else:
            found = cls(name=_last(source))
        return found if found.tasks else replace(found, tasks={task: {} for task in trained_tasks(known)})

    @classmethod
    def from_json(cls, values: dict[str, Any], fallback_name: str) -> Defaults:
        """Checks a parsed `mgpt.json`; an unknown key is an error, since nobody else writes this file."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                msg = f"{SOURCE}: unknown key {key!r}; the nearest is {near!r}"
                raise CheckpointError(msg)
        sizes = values.get("sizes", [])
        if not isinstance(sizes, list):
            msg = f"{SOURCE}: sizes must be a list, got {sizes!r}"
            raise CheckpointError(msg)
        pairs = tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
        return cls(**{"name": fallback_name} | values | {"sizes": pairs})


def known_name(source: str, names: dict[str, Any]) -> str | None:
    """Which of `names` a repository id or folder is called, the cache's `models--owner--name/snapshots/…` included."""
    parts = source.replace("\\", "/").replace("--", "/").lower().split("/")
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[part] for part in reversed(parts) if part in by_lower), None)


def trained_tasks(known: str | None) -> tuple[str, ...]:
    """Tasks of a public checkpoint; one that nobody knows draws, and its `mgpt.json` may say more."""
    every = tasks().values()
    if known is None:
        return ("text-to-image",)
    if known == "Lumina-mGPT-7B-768-Omni":
        return tuple(task.name for task in every if task.generation == 1)
    if known == "Lumina-mGPT-2.0":
        return tuple(task.name for task in every if task.from_words)
    if known == "Lumina-mGPT-2.0-Omni":
        return tuple(task.name for task in every if task.given in {"words", "upper half"})
    return FLEXIBLE_TASKS


def _are_settings(tasks: object) -> bool:
    if not isinstance(tasks, dict):
        return False
    return all(isinstance(settings, dict) and settings.keys() <= set(SAMPLING) for settings in tasks.values())


def _last(source: str) -> str:
    return Path(source).name or "checkpoint"


def _is_side(value: object) -> bool:
    return type(value) is int and 32 <= value <= 8192 and value % 32 == 0
