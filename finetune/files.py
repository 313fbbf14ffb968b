"""Files that a training leaves, whole or not at all, in folders that are made where they are missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mgpt_edge.runtime import files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """As `runtime.files.replace_atomically`; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_atomically(path, write)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2) + "\n"
    replace_atomically(path, lambda draft: draft.write_text(text))
