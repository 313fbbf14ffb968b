"""Counters as Linux shows them."""

from __future__ import annotations

import pytest

from mgpt_edge.bench.measuring.energy import Meter


@pytest.fixture
def powercap(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000\n")
        (tmp_path / name / "max_energy_range_uj").write_text("5000000\n")
    return tmp_path


def test_packages_are_added_and_their_parts_are_not(powercap):
    meter = Meter(powercap)
    before = meter.read()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("2000000\n")
    (powercap / "intel-rapl:1" / "energy_uj").write_text("500000\n")  # once around
    assert meter.joules(before) == pytest.approx(2.5 + 4.5)


def test_nothing_is_said_where_nothing_is_reported(tmp_path, powercap):
    assert not Meter(tmp_path / "nowhere")
    for zone in powercap.iterdir():
        (zone / "energy_uj").unlink()
    assert not Meter(powercap)
