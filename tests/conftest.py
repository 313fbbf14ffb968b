"""Tiny checkpoints and their bundles, exported once for the whole run; the command, run in the tests' own process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from mgpt_edge import cli
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.engines import best_engine
from mgpt_edge.runtime.bundle.folder import Bundle
from tests.families import LIKE_7B, LIKE_34B, write_checkpoint, write_second, write_talker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# A slow machine is no failure: the first example waits for Hypothesis' own tables.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

KINDS = {"7b": LIKE_7B, "34b": LIKE_34B}


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remembered hashes of test bundles stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny checkpoint of each kind."""
    made = {kind: write_checkpoint(tmp_path_factory.mktemp(kind), overrides) for kind, overrides in KINDS.items()}
    made["talker"] = write_talker(tmp_path_factory.mktemp("talker"))
    return made | {"2.0": write_second(tmp_path_factory.mktemp("2.0"))}


@pytest.fixture(scope="session")
def bundle_of(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[..., Bundle]:
    """(kind, precision, engine) -> its bundle, not to be written to; without an engine the precision's best."""
    base = tmp_path_factory.getbasetemp()
    bundles = (base if worker_id == "master" else base.parent) / "bundles"  # of all workers
    bundles.mkdir(exist_ok=True)

    def make(kind: str, precision: str, engine: str | None = None) -> Bundle:
        engine = engine or best_engine(precision)
        out = bundles / f"{kind}-{precision}-{engine}"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                export_bundle(Checkpoint.open(checkpoints[kind]), out, precision=precision, engine=engine)
        return Bundle.open(out)

    return make


@pytest.fixture
def mgpt(monkeypatch, capfd, tmp_path):
    """Runs `mgpt …` in this process; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mgpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.showwarning", None)
            cli.main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run
