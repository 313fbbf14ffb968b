"""A training that survives being killed: its state in one file, written every few minutes and at the end."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from mgpt_edge.finetune.files import replace_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Run(ABC):
    """Steps of one training; what a step does depends on the recipe and its number alone.

    Attributes:
        recipe: a dataclass with `steps`; a state of another recipe is refused.
        path: of the state's file.
        step: how many were taken.
    """

    def __init__(self, recipe: Any, path: Path) -> None:
        self.recipe, self.path, self.step = recipe, path, 0

    @abstractmethod
    def train_step(self) -> dict[str, float]:
        """One step; returns what a log wants to know, `step` among it."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything beside the step that `load` needs: tensors, numbers, lists and dicts of them."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""

    def run(self, save_every_s: float = 120.0) -> Iterator[dict[str, float]]:
        """Trains to the recipe's last step, yielding the log of each."""
        saved = time.monotonic()
        while self.step < self.recipe.steps:
            yield self.train_step()
            if time.monotonic() - saved > save_every_s or self.step == self.recipe.steps:
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        """Writes the state."""
        state = {"step": self.step, "recipe": json.dumps(asdict(self.recipe)), **self.state()}
        replace_atomically(self.path, lambda draft: torch.save(state, draft))

    def resume(self) -> bool:
        """Continues from the file, if it is there.

        Raises:
            ValueError: it is of another recipe.
        """
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["recipe"] != json.dumps(asdict(self.recipe)):
            msg = f"{self.path} was trained by another recipe; remove it to start again"
            raise ValueError(msg)
        self.load(state)
        self.step = state["step"]
        return True
