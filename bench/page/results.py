"""The stored results of a report: what was measured, on which machine, with what, and how to repeat it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mgpt_edge.bench.measuring.spread import joined
from mgpt_edge.bench.page.figures import figures
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mgpt_edge.bench.page.figures import Figure

SCHEMA = 2
PACKAGES = ("mgpt-edge", "numpy", "onnxruntime", "onnxruntime-genai", "torch", "transformers", "llama-cpp-python")


@dataclass(slots=True, kw_only=True)
class Results:
    """What `report.json` holds.

    Attributes:
        machine: its card; results of other machines are not comparable.
        versions: of what was measured.
        settings: of the report; a stopped one goes on with the same only.
        command: repeats it.
        date: on which it began, UTC.
        parts: by bench, its `command` and `seconds`, and either the `facts` of each of its `runs` and of all together,
            or the `problem` that there was.
        pictures: `prompt`, `seed`, and the PNG in base64.
        estimates: for other devices, and what they assume; measured nowhere.
        schema: of the file.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    command: str
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    estimates: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def figures(self) -> Iterator[Figure]:
        """Everything that was measured."""
        for part, entry in self.parts.items():
            if "facts" in entry:
                yield from figures(part, entry["facts"])

    def facts(self, part: str) -> Any:
        """What a bench printed; None where it did not run."""
        return self.parts.get(part, {}).get("facts")

    def runs(self, part: str) -> list[Any]:
        """What a bench printed, each time that it ran."""
        return list(self.parts.get(part, {}).get("runs", []))

    def add(self, part: str, entry: dict[str, Any]) -> None:
        """One run more; a problem is kept only where no run had facts."""
        if "facts" in entry:
            runs = [*self.runs(part), entry["facts"]]
            self.parts[part] = {**entry, "runs": runs, "facts": joined(runs)}
        elif not self.runs(part):
            self.parts[part] = entry

    @property
    def problems(self) -> dict[str, str]:
        """What could not be measured, and why: parts, and peers within theirs."""
        parts = {part: entry["problem"] for part, entry in self.parts.items() if "problem" in entry}
        peers = (self.facts("peers") or {}).get("missing", {})
        return parts | {f"peers, {name}": why for name, why in peers.items()}

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        InvalidRequest: there are none, or their schema is another.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        schema = int(values["schema"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"{path} holds no results of mgpt bench report: {error!r}"
        raise InvalidRequest(msg) from error
    if schema != SCHEMA:
        which = "a newer mgpt-edge wrote it" if schema > SCHEMA else "an older mgpt-edge wrote it; measure again"
        msg = f"{path} has schema {schema}, this version reads {SCHEMA}: {which}"
        raise InvalidRequest(msg)
    try:
        return Results(**values)
    except TypeError as error:
        msg = f"{path} says schema {SCHEMA} but is built otherwise: {error}"
        raise InvalidRequest(msg) from error


def machine_card() -> dict[str, Any]:
    """What figures depend on, and what stays the same from run to run."""
    return {
        "processor": machine.processor(),
        "cores": machine.usable_cores(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Of Python, and of every package that is measured."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
