"""The KV rows against a NumPy model of them."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mgpt_edge.runtime._native import FloatCache


class Rows(RuleBasedStateMachine):
    @initialize(
        layers=st.integers(1, 3),
        heads=st.integers(1, 3),
        head_dim=st.integers(1, 9),
        capacities=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    )
    def allocate(self, layers: int, heads: int, head_dim: int, capacities: list[int]) -> None:
        self.rows = FloatCache(layers, heads, head_dim, capacities)
        self.capacities = capacities
        self.lengths = [0] * len(capacities)
        self.model = [np.zeros((layers, 2, heads, capacity, head_dim), np.float32) for capacity in capacities]
        self.next = 1.0

    def blocks(self, row: int) -> np.ndarray:
        return np.stack([[self.rows.k(layer, row)[0], self.rows.v(layer, row)[0]] for layer in range(self.rows.layers)])

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.capacities) - 1))
        tokens = data.draw(st.integers(-1, 6))
        start, room = self.lengths[row], self.capacities[row] - self.lengths[row]
        if not 0 <= tokens <= room:
            with pytest.raises(ValueError, match="room"):
                self.rows.append(row, tokens)
            return
        for layer in range(self.rows.layers):
            for which, view in enumerate((self.rows.k(layer, row), self.rows.v(layer, row))):
                values = self.next + np.arange(view[0, :, start : start + tokens].size, dtype=np.float32)
                self.next += values.size
                view[0, :, start : start + tokens].flat = values
                self.model[row][layer, which, :, start : start + tokens].flat = values
        self.rows.append(row, tokens)
        self.lengths[row] += tokens

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, len(self.capacities) - 1))
        length = data.draw(st.integers(-1, 13))
        if not 0 <= length <= self.lengths[row]:
            with pytest.raises(ValueError, match="roll back"):
                self.rows.rollback(row, length)
            return
        self.rows.rollback(row, length)
        self.lengths[row] = length

    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        source, target = (data.draw(st.integers(0, len(self.capacities) - 1)) for _ in range(2))
        length = data.draw(st.integers(-1, 13))
        if not 0 <= length <= min(self.lengths[source], self.capacities[target]):
            with pytest.raises(ValueError, match="cannot copy"):
                self.rows.copy_prefix(source, target, length)
            return
        self.rows.copy_prefix(source, target, length)
        self.model[target][:, :, :, :length] = self.model[source][:, :, :, :length].copy()
        self.lengths[target] = length

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "sequences"):
            return
        assert self.rows.lengths == self.lengths
        for row, expected in enumerate(self.model):
            np.testing.assert_array_equal(self.blocks(row), expected)


TestRows = Rows.TestCase
TestRows.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)


def test_layout_is_aligned_exact_and_zero() -> None:
    rows = FloatCache(3, 2, 5, [7, 9])
    padded = [-(-2 * capacity * 5 * 4 // 64) * 64 for capacity in (7, 9)]
    assert rows.nbytes == 3 * 2 * sum(padded)
    assert (rows.layers, rows.kv_heads, rows.head_dim, rows.sequences) == (3, 2, 5, 2)
    assert (rows.capacity(0), rows.capacity(1), rows.length(1)) == (7, 9, 0)
    for layer in range(3):
        for row in range(2):
            for view in (rows.k(layer, row), rows.v(layer, row)):
                assert view.shape == (1, 2, 7 + 2 * row, 5)
                assert view.dtype == np.float32
                assert view.ctypes.data % 64 == 0
                assert view.flags.c_contiguous
                assert view.flags.writeable
                assert not view.any()


def test_views_share_memory_and_keep_it_alive() -> None:
    rows = FloatCache(1, 1, 4, [4096])
    view = rows.k(0, 0)
    view[...] = 3
    assert (rows.k(0, 0) == 3).all()
    del rows
    gc.collect()
    assert (view == 3).all()


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("bad", [0, -1, -(2**63)])
def test_sizes_below_one_are_refused(position: int, bad: int) -> None:
    arguments: list[Any] = [2, 2, 2, [2]]
    arguments[position] = [2, bad] if position == 3 else bad
    with pytest.raises(ValueError, match="must be at least 1"):
        FloatCache(*arguments)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        FloatCache(1, 1, 1, [])


@pytest.mark.parametrize(
    "arguments",
    [
        (2**62, 1, 1, [1]),
        (1, 2**40, 2**40, [1]),
        (1, 1, 1, [2**63 - 1]),
        (1, 1, 1, [2**60] * 8),
        (1, 1, 2**20, [2**27]),
        (2**63 - 1, 2**63 - 1, 2**63 - 1, [2**63 - 1]),
    ],
)
def test_more_than_the_machine_has_is_a_memory_error(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(MemoryError):
        FloatCache(*arguments)


def test_numbers_beyond_64_bits_are_refused() -> None:
    with pytest.raises(TypeError):
        FloatCache(2**64, 1, 1, [1])
    with pytest.raises(TypeError):
        FloatCache(1, 1, 1, [1]).append(0, 2**64)


@pytest.mark.parametrize("bad", [-1, 2, 2**62, -(2**62)])
def test_rows_and_layers_out_of_range(bad: int) -> None:
    rows = FloatCache(2, 1, 1, [2, 2])
    for call in (rows.capacity, rows.length, lambda row: rows.append(row, 0), lambda row: rows.rollback(row, 0)):
        with pytest.raises(IndexError, match=r"sequence must be in \[0, 2\)"):
            call(bad)
    for call in (rows.k, rows.v):
        with pytest.raises(IndexError, match="layer"):
            call(bad, 0)
        with pytest.raises(IndexError, match="sequence"):
            call(0, bad)
    with pytest.raises(IndexError, match="sequence"):
        rows.copy_prefix(0, bad, 0)
    with pytest.raises(ValueError, match="room"):
        rows.append(0, 2**63 - 1)
