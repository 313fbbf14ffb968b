"""`mgpt bench chat` on the small model: a second turn computes few of the conversation's tokens."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from mgpt_edge.cli import app


def test_what_a_turn_costs():
    run = CliRunner().invoke(app, ["bench", "chat", "--rounds", "2", "--json"])
    assert run.exit_code == 0, run.output
    facts = json.loads(run.stdout)
    assert 0 < facts["tokens: second turn / conversation"] < 0.1
    assert all(of["ratio"] > 0 for of in facts["times"].values())
    assert {"time: 64 new tokens / 16", "time: 256 new tokens / 16"} <= facts["times"].keys()
