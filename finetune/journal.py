"""What a training leaves to look at: a JSONL log and a plot of the loss."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mgpt_edge.finetune.files import replace_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMOOTHED_STEPS = 50


class Journal:
    """Appends records to a log, each flushed; a stage that goes on from an earlier step overwrites what came after.

    Args:
        path: of the JSONL file; `plot` writes beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def records(self) -> list[dict[str, Any]]:
        """Everything that was logged, in order; half a line at the end, from a kill, is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what a stage logged after `step`: it was not saved, and will be trained again."""
        kept = [record for record in self.records() if record["stage"] != stage or record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        replace_atomically(self.path, lambda draft: draft.write_text(text))

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Adds a record and returns it; `rewind` and `plot` need stage, step and loss in it."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def plot(self) -> None:
        """Draws the loss of every step and its running mean as `loss.png`."""
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        begin = 0
        for stage, group in groupby(self.records(), key=lambda record: record["stage"]):
            losses = [record["loss"] for record in group]
            steps = range(begin + 1, begin + len(losses) + 1)
            (line,) = axes.plot(steps, losses, alpha=0.3, linewidth=0.8)
            axes.plot(steps, _smoothed(np.array(losses)), color=line.get_color(), label=stage)
            begin += len(losses)
        axes.set(xlabel="step", ylabel="cross-entropy a token, nats")
        axes.grid(alpha=0.3)
        if begin:
            axes.legend(title="stage")
        replace_atomically(self.path.with_name("loss.png"), lambda draft: figure.savefig(draft, format="png", dpi=120))


def _smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each loss and those before it, at most SMOOTHED_STEPS."""
    sums = np.cumsum(losses)
    sums[SMOOTHED_STEPS:] -= sums[:-SMOOTHED_STEPS].copy()
    return sums / np.minimum(np.arange(1, len(losses) + 1), SMOOTHED_STEPS)
