"""What a pass costs by its number of guesses, measured once on a machine (`mgpt bench passes`) and kept there."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mgpt_edge.runtime.decoding.window import TRIALS, WIDTHS, Costs
from mgpt_edge.runtime.errors import CompatibilityWarning, InvalidRequest
from mgpt_edge.runtime.files import write_atomically
from mgpt_edge.runtime.machine import cache_folder, processor

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
COMMAND = "mgpt bench passes"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCosts:
    """One bundle's costs on one machine.

    Args:
        bundle: its digest.
        threads: of every pass.
        context: tokens that the sequences held.
        seconds: of a pass of a guided stream, by its number of guesses.
        machine: whose they are; they mean nothing elsewhere.
        schema: of the file.
    """

    bundle: str
    threads: int
    context: int
    seconds: dict[int, float]
    machine: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA or set(self.seconds) != set(WIDTHS) or not all(s > 0 for s in self.seconds.values()):
            msg = f"expected schema {SCHEMA} and times of {WIDTHS} guesses"
            raise ValueError(msg)

    @property
    def costs(self) -> Costs:
        """For `window.Window`, trusted from the start and corrected while running."""
        return Costs(dict(self.seconds), dict.fromkeys(self.seconds, TRIALS))

    def save(self) -> Path:
        """Writes the file, whole or not at all.

        Raises:
            InvalidRequest: this user has no folder for caches.
        """
        path = _path(self.bundle, self.threads)
        if path is None:
            msg = "there is no folder to keep the costs in: set XDG_CACHE_HOME, or HOME"
            raise InvalidRequest(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())
        return path


def stored(bundle: str, threads: int) -> Costs:
    """The costs measured for a bundle with so many threads; none yet where there is no file for this machine.

    A file that is damaged or from another machine is named in a `CompatibilityWarning` and not used.
    """
    path = _path(bundle, threads)
    try:
        text = None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # none there, or a folder that this user can't read
        text = None
    if text is None:
        return Costs()
    try:
        values = json.loads(text)
        seconds = {int(width): float(value) for width, value in values.pop("seconds").items()}
        found = PassCosts(seconds=seconds, **values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        msg = f"{path} holds no costs of passes: {error}; run {COMMAND} again"
        warnings.warn(msg, CompatibilityWarning, stacklevel=4)
        return Costs()
    if found.machine != processor():
        msg = f"{path} was measured on {found.machine!r}, this is {processor()!r}; run {COMMAND} here"
        warnings.warn(msg, CompatibilityWarning, stacklevel=4)
        return Costs()
    return found.costs


def _path(bundle: str, threads: int) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "calibration" / f"{bundle[:16]}-{threads}.json"
