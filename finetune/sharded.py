"""A stage of training whose state is shared out: each process writes its own part, and any number of them resume it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open

from mgpt_edge.finetune.files import write_json
from mgpt_edge.finetune.parts import write_parts
from mgpt_edge.finetune.sft import Recipe, Stage
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.distributed.tensor import DTensor

    from mgpt_edge.finetune.parallel import Processes
    from mgpt_edge.finetune.sft import Corpus
    from mgpt_edge.finetune.weights import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedStage(Stage):
    """A stage over a model that processes share.

    The state is a folder `state-STEP`: safetensors of each process' rows of the trained weights and of AdamW's
    moments, and `state.json`. It appears whole or not at all, and the one before is removed after that.

    Args:
        objective: the sharded model.
        corpus: where batches come from; its batches divide evenly by the number of processes.
        recipe: how it is trained; without an average.
        folder: of the stage, where its states are kept.
        processes: those that share the model.
        rows: sequences of a process that go through the model at a time.
        setting: what else must be the same when a state is resumed, by the names that a user knows.
    """

    def __init__(
        self,
        objective: Objective,
        corpus: Corpus,
        recipe: Recipe,
        folder: Path,
        processes: Processes,
        rows: int,
        setting: Mapping[str, Any],
    ) -> None:
        super().__init__(objective.decoder, corpus, recipe, folder, folder.name, processes, rows)
        self.sharded, self.setting = objective, dict(setting)

    def objective(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses: tuple[Tensor, Tensor] = self.sharded(tokens, labels)
        return losses

    def save(self) -> None:
        """Writes everything that `resume` needs."""
        old, new = newest_state(self.folder), self.folder / f"state-{self.step:09d}"
        draft = new.with_name(f".{new.name}")
        if self.processes.first:
            for unfinished in self.folder.glob(".state-*"):
                shutil.rmtree(unfinished)
            draft.mkdir(parents=True)
        self.processes.wait()
        write_parts(self._shares(), draft / f"rank-{self.processes.rank:05d}")
        self.processes.wait()
        if self.processes.first:
            write_json(draft / "state.json", {"step": self.step, **self._identity()})
            draft.replace(new)
            if old:
                shutil.rmtree(old)
        self.processes.wait()

    @torch.no_grad()
    def resume(self) -> bool:
        """Continues from the newest state, if there is one.

        Raises:
            InvalidRequest: it was trained by another recipe or on other data.
        """
        path = newest_state(self.folder)
        if path is None:
            return False
        state = json.loads((path / "state.json").read_text())
        self._check(path, state)
        shares = Shares(path)
        for name, parameter in self._trained():
            moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            for kind, tensor in (("weight", parameter), *moments.items()):
                shares.read(f"{kind} {name}", cast("DTensor", tensor))
            self.optimizer.state[parameter] = {"step": torch.tensor(float(state["step"])), **moments}
        self.step = state["step"]
        return True

    def _identity(self) -> dict[str, Any]:
        return {"recipe": asdict(self.recipe), "setting": self.setting}

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        wanted = {**self.setting, **asdict(self.recipe)}
        found = {**state["setting"], **asdict(Recipe(**state["recipe"]))}
        others = [f"{key} was {found.get(key)}, is {wanted[key]}" for key in wanted if found.get(key) != wanted[key]]
        if others:
            msg = (
                f"{path} was trained otherwise: {'; '.join(others)}. "
                "Give the same options to continue it, or another -o to begin again"
            )
            raise InvalidRequest(msg)

    def _trained(self) -> Iterator[tuple[str, DTensor]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, cast("DTensor", parameter)

    def _shares(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._trained():
            yield f"weight {name}", parameter.to_local()
            for moment in MOMENTS:
                yield f"{moment} {name}", self.optimizer.state[parameter][moment].to_local()


def newest_state(folder: Path) -> Path | None:
    """The last state that a stage saved in its folder."""
    return max(folder.glob("state-*"), default=None)


class Shares:
    """The tensors of a state, each in as many pieces as processes wrote it: its rows, in the processes' order."""

    def __init__(self, folder: Path) -> None:
        self.pieces: dict[str, list[Any]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118  it is no mapping
                self.pieces.setdefault(name, []).append(file.get_slice(name))

    def read(self, name: str, tensor: DTensor) -> None:
        """Fills this process' rows of a tensor."""
        local, mesh = tensor.to_local(), tensor.device_mesh
        first = mesh.get_local_rank() * -(-tensor.shape[0] // mesh.size())
        begin = done = 0
        for piece in self.pieces[name]:
            length = piece.get_shape()[0]
            low, high = max(first, begin) - begin, min(first + len(local), begin + length) - begin
            if low < high:
                local[done : done + high - low] = piece[low:high]
                done += high - low
            begin += length
