"""A checkpoint that computes the same, or nearly, with other numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgpt_edge.export.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewritten(Checkpoint):
    """A checkpoint some of whose tensors are replaced as they are read; these come in float32.

    Attributes:
        changes: tensor's name -> what is made of it, float32 [as stored].
    """

    changes: Mapping[str, Callable[[Tensor], Tensor]]

    @classmethod
    def of(cls, checkpoint: Checkpoint, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Self:
        """The checkpoint with these changes."""
        return cls(**{field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}, changes=changes)

    def tensor(self, name: str) -> Tensor:
        """As of `Checkpoint`, changed."""
        found = Checkpoint.tensor(self, name)
        return self.changes[name](found.float()) if name in self.changes else found

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name in self.changes else Checkpoint.dtype(self, name)
