"""Two stored reports side by side: what counts as worse, and what is not compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from mgpt_edge.bench.compare import Regression
from mgpt_edge.bench.page.results import SCHEMA
from mgpt_edge.cli import app
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from mgpt_edge.bench.page.results import Results


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Result]:
    def run(before: Results, after: Results, *flags: str) -> Result:
        paths = [tmp_path / "before.json", tmp_path / "after.json"]
        for path, results in zip(paths, (before, after), strict=True):
            results.save(path)
        return CliRunner().invoke(app, ["bench", "compare", *map(str, paths), *flags])

    return run


def changed(results: Results, factor: float) -> Results:
    """The native step takes `factor` times as long."""
    side = results.facts("peers")["sides"]["native, int8"]
    side["ms"] *= factor
    side["ms_spread"] = [factor * edge for edge in side["ms_spread"]]
    return results


def test_a_report_is_as_good_as_itself(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    run = compared(results(), results())
    assert run.exit_code == 0, run.output
    assert run.output.count("1.000 x") == len(list(results().figures))
    assert "WORSE" not in run.output


def test_within_the_spread_nothing_is_worse(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    assert compared(results(), changed(results(), 1.08)).exit_code == 0


def test_beyond_the_spread_it_is_a_regression(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    run = compared(results(), changed(results(), 1.2))
    assert isinstance(run.exception, Regression)
    assert run.exception.exit_code == 1
    assert "peers, tiny, context 40: native, int8" in str(run.exception)
    assert "1.200 x" in run.output
    faster = compared(changed(results(), 1.2), results())
    assert faster.exit_code == 0
    assert "better" in faster.output


def test_less_of_what_should_be_more_is_worse(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    after = results()
    after.facts("quality")["32x32, one solid"] = "80.0 % (75.0-85.0, n=100)"
    run = compared(results(), after)
    assert isinstance(run.exception, Regression)
    assert "quality, 32x32, one solid" in str(run.exception)


def test_what_was_measured_once_is_not_judged(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    after = results()
    after.facts("latency")["peak_resident_mib"] = 1000
    run = compared(results(), after)
    assert run.exit_code == 0
    assert "10.000 x" in run.output
    assert "measured once, not judged" in run.output


def test_two_machines_are_compared_on_request_only(
    results: Callable[..., Results], compared: Callable[..., Result]
) -> None:
    other = results(machine={"processor": "two", "cores": 2})
    refused = compared(results(), other)
    assert isinstance(refused.exception, InvalidRequest)
    assert "processor one and two" in str(refused.exception)
    assert compared(results(), other, "--any-machine").exit_code == 0


def test_a_part_that_one_lacks_is_said(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    after = results()
    after.parts["sampler"] = {"command": "", "problem": "it failed"}
    run = compared(results(), after)
    assert run.exit_code == 0
    assert "2 figures are in one of the two only: sampler" in run.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"schema": SCHEMA + 1}, "a newer mgpt-edge wrote it"),
        ({"schema": SCHEMA - 1}, "measure again"),
        ({"schema": "x"}, "no results"),
        ({"schema": SCHEMA, "other": 1}, "built otherwise"),
        ({}, "no results"),
        ([], "no results"),
        (None, "no results"),
    ],
)
def test_no_results(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(json.dumps(content))
    run = CliRunner().invoke(app, ["bench", "compare", str(path), str(path)])
    assert isinstance(run.exception, InvalidRequest), run.exception
    assert said in str(run.exception)


def test_parts_that_no_bench_printed(results: Callable[..., Results], compared: Callable[..., Result]) -> None:
    broken = results(parts={"peers": {"command": "", "facts": {"shape": "tiny"}}})
    assert "mgpt bench peers" in str(compared(broken, broken).exception)
