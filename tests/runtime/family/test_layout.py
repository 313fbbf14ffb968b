"""The token layout against the family's published figures, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt_edge.runtime.errors import BundleError, InvalidRequest
from mgpt_edge.runtime.family.layout import ImageLayout, buckets, nearest_bucket
from mgpt_edge.runtime.family.vocabulary import Vocabulary

LUMINA = Vocabulary(
    size=65536,
    bos=0,
    begin_image=8197,
    end_image=8196,
    end_row=8803,
    separator=8710,
    first_grid=8804,
    grids=7580,
    first_code=4,
    codes=8192,
)
# Lumina-mGPT 2.0's published ids; how many grid tokens there are is not.
LUMINA_2 = Vocabulary(
    size=171385,
    bos=151643,
    begin_image=151665,
    end_image=151666,
    end_row=151670,
    separator=None,
    first_grid=151671,
    grids=3329,
    first_code=155000,
    codes=16384,
)
SIDES = st.integers(1, 20).map(lambda units: units * 32)


@pytest.mark.parametrize(
    ("width", "height", "count", "height_id", "width_id"),
    [
        (512, 512, 1060, 8820, 8820),
        (768, 768, 2356, 8828, 8828),
        (1024, 1024, 4164, 8836, 8836),
        (768, 1024, 3140, 8836, 8828),
        (1024, 512, 2084, 8820, 8836),
    ],
)
def test_published_lengths(width, height, count, height_id, width_id):
    layout = ImageLayout(width, height, LUMINA)
    assert len(layout) == count
    assert layout.grid == (8197, height_id, width_id)


def test_golden_512():
    layout = ImageLayout(512, 512, LUMINA)
    tokens = layout.encode(np.arange(1024).reshape(32, 32))
    assert tokens[:3] == [8197, 8820, 8820]
    assert tokens[3 + 32 :: 33][:32] == [8803] * 32
    assert tokens[-1] == 8196
    assert tokens[3] == 4


@pytest.mark.parametrize(
    ("width", "height", "count"), [(512, 512, 4164), (768, 768, 9316), (1024, 1024, 16516), (768, 1024, 12420)]
)
def test_published_lengths_of_the_second_generation(width, height, count):
    layout = ImageLayout(width, height, LUMINA_2, stride=8)
    assert len(layout) == count
    assert layout.grid == (151665, 151671 + height // 32, 151671 + width // 32)
    tokens = layout.encode(np.full((height // 8, width // 8), 16383))
    assert tokens[3 + width // 8 :: width // 8 + 1][: height // 8] == [151670] * (height // 8)
    assert (tokens[3], tokens[-1]) == (171383, 151666)


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_round_trip_and_intervals(width, height, seed):
    layout = ImageLayout(width, height, LUMINA)
    codes = np.random.default_rng(seed).integers(0, LUMINA.codes, (layout.rows, layout.columns))
    tokens = layout.encode(codes)
    assert len(tokens) == len(layout)
    assert np.array_equal(layout.decode(tokens), codes)
    for index, token in enumerate(tokens):
        low, high = layout.interval(index)
        assert low <= token < high
        assert (layout.forced(index) is None) == (high - low > 1)


@given(SIDES, SIDES, st.data())
def test_decode_gives_the_finished_rows(width, height, data):
    layout = ImageLayout(width, height, LUMINA)
    codes = np.zeros((layout.rows, layout.columns), np.int64)
    cut = data.draw(st.integers(0, len(layout)))
    finished = layout.decode(layout.encode(codes)[:cut])
    assert finished.shape == (max(0, min(cut, len(layout) - 1) - 3) // (layout.columns + 1), layout.columns)


def test_decode_refuses_a_token_out_of_place():
    layout = ImageLayout(64, 64, LUMINA)
    tokens = layout.encode(np.zeros((4, 4), np.int64))
    tokens[5] = LUMINA.end_row
    with pytest.raises(InvalidRequest, match="token 8803 at index 5"):
        layout.decode(tokens)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((100, 64), "96x64"), ((0, 64), "32x64"), ((-32, 10**9), "32x242528"), ((64, 65), "64x64")],
)
def test_impossible_sizes_name_the_nearest(size, nearest):
    with pytest.raises(InvalidRequest, match=nearest):
        ImageLayout(*size, LUMINA)


@pytest.mark.parametrize("size", [(64.0, 64), (True, 64), ("64", 64), (None, 64)])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(InvalidRequest, match="whole number"):
        ImageLayout(*size, LUMINA)


@pytest.mark.parametrize(
    ("target", "count", "widest"), [(512, 49, (1024, 256)), (768, 73, (1536, 384)), (1024, 97, (2048, 512))]
)
def test_crop_lists(target, count, widest):
    sizes = buckets(target)
    assert len(sizes) == count == len(set(sizes))
    assert sizes[0] == widest
    assert sizes[-1] == widest[::-1]
    assert (target, target) in sizes
    assert all(w * h <= target * target and max(w, h) <= 4 * min(w, h) for w, h in sizes)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_bucket_keeps_most_of_the_picture(width, height):
    sizes = buckets(512)

    def kept(size):
        scale = max(size[0] / width, size[1] / height)
        return size[0] * size[1] / (width * scale * height * scale)

    assert kept(nearest_bucket(width, height, sizes)) == pytest.approx(max(map(kept, sizes)))


@given(st.sampled_from([32, 64, 96, 128]), st.sampled_from([32, 64, 96, 128]), st.integers(1, 5))
def test_nearest_bucket_of_one_shape_is_nearest_in_size(width, height, times):
    sizes = [(width * n, height * n) for n in (4, 2, 1, 5, 3)]
    assert nearest_bucket(width * times, height * times, sizes) == (width * times, height * times)
    assert nearest_bucket(width * 9, height * 9, sizes) == (width * 5, height * 5)


@pytest.mark.parametrize(
    "change", [{"bos": -1}, {"codes": 65536}, {"first_grid": 65000}, {"separator": "x"}, {"codes": 0}]
)
def test_vocabulary_is_checked(change):
    with pytest.raises(BundleError, match="vocabulary"):
        Vocabulary(**{**LUMINA.to_json(), **change})


def test_only_the_separator_may_be_words():
    assert Vocabulary(**{**LUMINA.to_json(), "separator": None}).turn_end == ()
    with pytest.raises(BundleError, match="bos must be an id"):
        Vocabulary(**{**LUMINA.to_json(), "bos": None})
