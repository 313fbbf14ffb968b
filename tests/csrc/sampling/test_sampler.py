"""The native sampler equals the NumPy specification, to the token, and draws from softmax."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mgpt_edge.runtime import _native
from mgpt_edge.runtime.errors import InvalidRequest, NumericalError
from mgpt_edge.runtime.sampling import sampler as sampling
from mgpt_edge.runtime.sampling import specification

INF = float("inf")
NAN = float("nan")
SPECIAL = np.array([0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 3e38, -3e38, 1e-45, -1e-45, 1.0000001], np.float32)
PLAIN = {"guidance": 1.0, "top_k": 100, "temperature": 1.0, "seed": 7, "position": 3}


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def draw(cond: np.ndarray, uncond: np.ndarray | None = None, **changes: Any) -> int:
    arguments = {"first_id": 4, "low": 4, "high": 4 + len(cond), **PLAIN, **changes}
    return sampling.sample(cond, uncond, **arguments)


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """A small case: every third with ties, every third with special values."""
    size = int(rng.integers(1, 40))
    first_id = int(rng.integers(0, 70000))
    kind = rng.integers(0, 6)
    if kind < 2:
        rows = (rng.normal(size=(2, size)) * 4).astype(np.float32)
    elif kind < 4:
        rows = rng.integers(-2, 3, (2, size)).astype(np.float32) * np.float32(rng.choice([-0.0, 0.5, 1.0]))
    else:
        rows = rng.normal(size=(2, size)).astype(np.float32)
        special = rng.random((2, size)) < rng.choice([0.05, 0.5])
        rows[special] = rng.choice(SPECIAL if kind == 4 else SPECIAL[[0, 1, 3, 5, 6, 7, 8]], int(special.sum()))
    low = int(rng.integers(0, size))
    high = int(rng.integers(low + 1, size + 1))
    paired = rng.random() < 0.7
    settings = {
        "first_id": first_id,
        "low": first_id + low,
        "high": first_id + high,
        "guidance": float(rng.choice([0.0, 1.0, -0.0, 3.0, 4.0, 7.5, -1.5, 1e30])) if paired else 1.0,
        "top_k": int(rng.choice([1, 2, 5, 20, 2000])),
        "temperature": float(rng.choice([0.0, 1.0, 0.7, 0.1, 5.0, 1e-30, 1e-46, 1e30])),
        "seed": int(rng.integers(0, 2**64, dtype=np.uint64)),
        "position": int(rng.integers(0, 2**32)),
    }
    return rows[0], rows[1] if paired else None, settings


def outcome(function: Any, cond: np.ndarray, uncond: np.ndarray | None, case: dict[str, Any]) -> int | str:
    try:
        return int(function(cond, uncond, **case))
    except NumericalError as error:
        return str(error)


def compare(cases: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = 0
    for _ in range(cases):
        cond, uncond, case = random_case(rng)
        expected = outcome(specification.sample, cond, uncond, case)
        got = outcome(sampling.sample, cond, uncond, case)
        assert got == expected, (cond, uncond, case)
        errors += isinstance(got, str)
    assert 0.02 * cases < errors < 0.5 * cases  # both kinds of ending are common


@pytest.mark.parametrize("name", _native.instruction_sets())
def test_equals_the_reference(name: str) -> None:
    _native.use_instruction_set(name)
    try:
        compare(7_000, 11)
    finally:
        _native.use_instruction_set(_native.instruction_sets()[0])


def test_a_hundred_thousand_tokens_equal_the_reference() -> None:
    tokens_equal(100_000)


@pytest.mark.slow
def test_a_million_tokens_equal_the_reference() -> None:
    tokens_equal(900_000)
    compare(100_000, 12)


def tokens_equal(cases: int) -> None:
    """Cases in blocks that share shape and settings, so that the reference of a block is one array operation.

    What stands here is `specification.sample` for finite numbers and -inf, on a 2-D array.
    """
    rng = np.random.default_rng(13)
    block = 500
    for index in range(cases // block):
        size = int(rng.integers(1, 64))
        rows = (rng.normal(size=(2, block, size)) * 3).astype(np.float32)
        if index % 2:
            rows = np.round(rows) * np.float32(rng.choice([1.0, -1.0]))  # ties and signed zeros
            rows[:, rng.random((block, size)) < 0.1] = -np.inf
            rows[:, :, 0] = 0
        guidance = float(rng.choice([0.0, 1.0, 3.0, 4.0]))
        top_k, temperature = int(rng.choice([1, 3, 10, 100])), float(rng.choice([1.0, 0.7, 0.0]))
        first_id, seed = int(rng.integers(0, 70000)), int(rng.integers(0, 2**64, dtype=np.uint64))
        c, u = rows
        with np.errstate(invalid="ignore"):
            s = np.float32(guidance)
            guided = (c if s == 1 else u if s == 0 else u + s * (c - u)) + np.float32(0)
        guided = np.where((c == -np.inf) | (u == -np.inf), np.float32(-np.inf), guided)
        if temperature == 0:
            expected = guided.argmax(1)
        else:
            kth = np.sort(guided, axis=1)[:, max(size - top_k, 0)][:, None]
            positions, ids = np.arange(block, dtype=np.uint64)[:, None], np.arange(first_id, first_id + size)
            noise = specification.gumbel(seed, positions, ids)
            score = np.where(guided >= kth, guided / np.float32(temperature) + noise, np.float32(-np.inf))
            expected = score.argmax(1)
        sampler = sampling.Sampler(guidance, top_k, temperature, seed)
        got = [sampler(c[i], u[i], first_id, first_id, first_id + size, i) - first_id for i in range(block)]
        np.testing.assert_array_equal(got, expected)


def test_large_intervals_equal_the_reference() -> None:
    rng = np.random.default_rng(14)
    for size, top_k in ((8192, 2000), (8192, 1), (65536, 50), (65536, 10**9), (16384, 16383)):
        rows = (rng.normal(size=(2, size)) * 3).astype(np.float32)
        for scale in (1.0, 8.0):  # the second is all ties
            rows = np.round(rows * np.float32(scale)) / np.float32(scale) if scale > 1 else rows
            case = {**PLAIN, "first_id": 4, "low": 4, "high": 4 + size, "guidance": 4.0, "top_k": top_k}
            assert sampling.sample(rows[0], rows[1], **case) == specification.sample(rows[0], rows[1], **case)


def test_guidance_zero_and_one_are_the_rows_themselves() -> None:
    c, u = floats(1e8, 2, 1e8 + 8), floats(1, 3, 2)
    assert draw(c, u, guidance=0.0, temperature=0.0) == 5
    assert draw(c, u, guidance=1.0, temperature=0.0) == 6
    assert draw(c, temperature=0.0) == 6


def test_ties_break_to_the_lower_id_and_zero_has_no_sign() -> None:
    assert draw(floats(-1, -0.0, 0.0), temperature=0.0) == 5
    assert draw(floats(-1, 0.0, -0.0), temperature=0.0) == 5
    seen = {draw(floats(-5, -0.0, 0.0, -1), top_k=1, position=p) for p in range(64)}
    assert seen == {5, 6}


def test_ties_at_the_kth_value_are_kept() -> None:
    seen = {draw(floats(2, 1, 1, 1, 0), top_k=2, temperature=4.0, position=p) for p in range(200)}
    assert seen == {4, 5, 6, 7}


@pytest.mark.parametrize(
    ("c", "u"), [((-INF, 1), (0, 0)), ((5, 1), (-INF, 0)), ((-INF, 1), (-INF, 0)), ((-INF, 1), (INF, 0))]
)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0, -2.0])
def test_minus_infinity_on_either_side_excludes(c: Any, u: Any, guidance: float) -> None:
    assert {draw(floats(*c), floats(*u), guidance=guidance, position=p) for p in range(50)} == {5}


def test_plus_infinity_wins() -> None:
    assert {draw(floats(9, INF, 9, INF), position=p) for p in range(50)} == {5}
    assert {draw(floats(9, INF, 9), floats(0, 1, 0), guidance=4.0, position=p) for p in range(50)} == {5}


@pytest.mark.parametrize(
    ("c", "u", "guidance"),
    [
        ((NAN, 0), (0, 0), 4.0),
        ((0, 0), (0, NAN), 4.0),
        ((NAN, 0), (0, 0), 0.0),
        ((0, 0), (0, NAN), 1.0),
        ((NAN, 0), (-INF, 0), 4.0),
        ((INF, 0), (INF, 0), 4.0),
    ],
)
def test_not_a_number_is_an_error(c: Any, u: Any, guidance: float) -> None:
    with pytest.raises(NumericalError, match=r"ids \[4, 6\) hold NaN"):
        draw(floats(*c), floats(*u), guidance=guidance)
    assert draw(floats(NAN, 1, NAN), low=5, high=6) == 5  # outside the interval nothing counts


def test_nothing_left_is_an_error() -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(NumericalError, match="nothing is left"):
            draw(floats(-INF, -INF), temperature=temperature)


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": INF},
        {"guidance": NAN},
        {"guidance": 1e39},
        {"guidance": "4"},
        {"guidance": 2.0},  # without unconditional logits
        {"temperature": -0.1},
        {"temperature": NAN},
        {"temperature": INF},
        {"temperature": True},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 2**64},
        {"top_k": 2.5},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.0},
        {"position": -1},
        {"position": 2**32},
        {"low": 3},
        {"high": 9},
        {"low": 7, "high": 7},
        {"low": 7, "high": 5},
        {"first_id": -1},
        {"first_id": 2**31},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"must|needs"):
        draw(floats(1, 2, 3, 4), **changes)


def test_other_arrays_are_refused() -> None:
    good = floats(1, 2, 3, 4)
    for bad in (
        good.astype(np.float64),
        good[::2],
        good[None],
        np.arange(4),
        np.asfortranarray(np.ones((2, 2), np.float32)),
    ):
        with pytest.raises(TypeError, match="C-contiguous float32"):
            draw(bad, high=5)
        with pytest.raises(TypeError, match="uncond must be"):
            draw(good, bad)
    with pytest.raises(InvalidRequest, match="one length, got 4 and 3"):
        draw(good, good[:3])


@pytest.mark.parametrize(("top_k", "temperature", "guidance"), [(100, 1.0, 1.0), (12, 0.7, 1.0), (20, 1.3, 4.0)])
def test_frequencies_are_softmax(top_k: int, temperature: float, guidance: float) -> None:
    rng = np.random.default_rng(15)
    c, u = rng.normal(size=(2, 40)).astype(np.float32)
    draws = 100_000
    sampler = sampling.Sampler(guidance, top_k, temperature, 99)
    counts = np.bincount([sampler(c, u, 0, 0, 40, p) for p in range(draws)], minlength=40)
    logits = (u + guidance * (c - u)).astype(np.float64)
    logits[logits < np.sort(logits)[-min(top_k, 40)]] = -np.inf
    probability = np.exp(logits / temperature)
    probability /= probability.sum()
    assert counts[probability == 0].sum() == 0
    expected = probability * draws
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    full = expected > 0
    assert stats.chisquare(observed[full], expected[full] * observed.sum() / expected.sum()).pvalue > 1e-3


def test_neighbouring_positions_and_seeds_are_independent() -> None:
    uniform = np.zeros(16, np.float32)
    for seed in (0, 1):
        tokens = [draw(uniform, seed=seed, position=p) - 4 for p in range(20_001)]
        pairs = np.bincount(np.array(tokens[:-1]) * 16 + tokens[1:], minlength=256)
        assert stats.chisquare(pairs).pvalue > 1e-3


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_token_is_allowed_and_threads_agree(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 80))
    numbers = st.one_of(st.floats(width=32, allow_nan=False), st.just(-INF), st.just(0.0))
    row = st.lists(numbers, min_size=size, max_size=size).map(lambda values: np.array(values, np.float32))
    c, u = data.draw(row), data.draw(row)
    low = data.draw(st.integers(0, size - 1))
    high = data.draw(st.integers(low + 1, size))
    case = {
        "first_id": 4,
        "low": 4 + low,
        "high": 4 + high,
        "guidance": data.draw(st.floats(-10, 10, width=32)),
        "top_k": data.draw(st.integers(1, 100)),
        "temperature": data.draw(st.floats(0, 100, width=32)),
        "seed": data.draw(st.integers(0, 2**64 - 1)),
        "position": data.draw(st.integers(0, 2**32 - 1)),
    }
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: outcome(sampling.sample, c, u, case), range(4)))
    assert len(set(results)) == 1
    assert results[0] == outcome(specification.sample, c, u, case)
    if isinstance(results[0], int):
        assert case["low"] <= results[0] < case["high"]
        assert c[results[0] - 4] > -INF
        assert u[results[0] - 4] > -INF
