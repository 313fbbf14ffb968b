"""What pictures cost, of random weights."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from mgpt_edge.cli import app
from mgpt_edge.runtime.errors import InvalidRequest


@pytest.mark.filterwarnings("ignore::mgpt_edge.runtime.errors.CompatibilityWarning")
def test_a_shape_is_measured_as_a_bundle_is() -> None:
    run = CliRunner().invoke(app, ["bench", "latency", "--shape", "tiny", "--pictures", "1", "--json"])
    assert run.exit_code == 0, run.output
    facts = json.loads(run.stdout)
    assert facts["bundle"] == "tiny int8"
    assert [way["speculate"] for way in facts["ways"]] == ["off", "auto"]
    for way in facts["ways"]:
        assert way["size"] == "128x128"
        # The first row's time is a part of the picture's, and so is everything outside the passes.
        assert 0 < way["first_row_s"] <= way["picture_s"]
        assert 0 < 1e-6 * way["outside_us_a_code"] * 64 < way["picture_s"]
    assert facts["ways"][0]["codes_a_pass"] == 1


def test_a_shape_and_a_bundle_are_one_too_many(tmp_path) -> None:
    run = CliRunner().invoke(app, ["bench", "latency", "--shape", "tiny", "--model", str(tmp_path)])
    assert isinstance(run.exception, InvalidRequest)
    assert "give one of them" in str(run.exception)
