"""Writing so that a kill leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a draft's path beside `path` and renames the draft when it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(draft)
        draft.chmod(0o644)  # safetensors lets nobody but the owner read what it writes
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=2) + "\n"
    replace_atomically(path, lambda draft: draft.write_text(text))
