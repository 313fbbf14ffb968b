"""The command, run in the tests' own process."""

from __future__ import annotations

import sys

import pytest

from mgpt_edge import cli


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
