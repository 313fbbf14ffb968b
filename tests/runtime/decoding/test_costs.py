"""Measured costs of passes: kept, read again, and never taken from another machine."""

from __future__ import annotations

import json
import sys
import warnings

import pytest
from typer.testing import CliRunner

from mgpt_edge.cli import app
from mgpt_edge.cli.bench import VERBS
from mgpt_edge.runtime.decoding.costs import PassCosts, stored
from mgpt_edge.runtime.decoding.window import WIDTHS, Window
from mgpt_edge.runtime.errors import CompatibilityWarning, InvalidRequest
from mgpt_edge.runtime.machine import processor
from mgpt_edge.runtime.model import Model


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def kept():
    seconds = {width: 0.001 * (1 + width) for width in WIDTHS}
    return PassCosts(bundle="b" * 64, threads=2, context=10, seconds=seconds, machine=processor())


def test_costs_are_kept_and_trusted(kept):
    kept.save()
    costs = stored(kept.bundle, 2)
    assert costs.seconds == kept.seconds
    assert all(costs.known(width) for width in WIDTHS)
    assert Window(None, costs).choose() == 0  # each guess costs a pass


def test_none_are_known_before(kept):
    kept.save()
    assert stored(kept.bundle, 3).seconds == {}
    assert stored("c" * 64, 2).seconds == {}


@pytest.mark.parametrize("damage", ["machine", "schema", "cut", "seconds", "list"])
def test_a_file_that_is_not_of_this_machine_is_named_and_not_used(kept, damage):
    path = kept.save()
    values = json.loads(path.read_text())
    if damage == "machine":
        values["machine"] = "another"
    elif damage == "schema":
        values["schema"] = 99
    elif damage == "seconds":
        values["seconds"]["0"] = -1
    text = "[]" if damage == "list" else json.dumps(values)
    path.write_text(text[: len(text) // 2] if damage == "cut" else text)
    with pytest.warns(CompatibilityWarning, match="mgpt bench passes"):
        assert stored(kept.bundle, 2).seconds == {}


def test_the_command_measures_and_the_model_starts_from_it(bundle_of):
    bundle = bundle_of("7b", "int8", "native")
    assert Model(bundle, threads=1).costs.seconds == {}
    result = CliRunner().invoke(app, ["bench", "passes", "--model", str(bundle.folder), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert {int(width) for width in said["seconds"]} == set(WIDTHS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model(bundle, threads=said["threads"])
    assert model.costs.seconds == {int(width): seconds for width, seconds in said["seconds"].items()}


def test_bench_lists_what_it_measures_and_names_what_is_missing(monkeypatch):
    assert "speculation" in CliRunner().invoke(app, ["bench"]).stdout
    unknown = CliRunner().invoke(app, ["bench", "speed"])
    assert isinstance(unknown.exception, InvalidRequest)
    assert f"there is no bench 'speed'; there are {', '.join(VERBS)}" in str(unknown.exception)
    monkeypatch.setitem(sys.modules, "mgpt_edge.bench.peers", None)
    missing = CliRunner().invoke(app, ["bench", "peers"])
    assert isinstance(missing.exception, InvalidRequest)
    assert "pip install 'mgpt-edge[cpu,bench]'" in str(missing.exception)
