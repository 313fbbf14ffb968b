"""The native engine: near the PyTorch reference, and the same bits whatever the width, the threads and the CPU."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.golden import load_block
from mgpt_edge.export.lower import native
from mgpt_edge.export.model import causal_attention
from mgpt_edge.export.quantise import int4
from mgpt_edge.export.rounding import embedded, quantised_linear
from mgpt_edge.runtime._native import instruction_sets
from mgpt_edge.runtime.bundle.tensors import map_tensors
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.base import Segment
from mgpt_edge.runtime.engines.native import FILE, NativeEngine, load_decoder
from mgpt_edge.runtime.errors import BundleError, InvalidRequest
from mgpt_edge.runtime.golden import recompute
from tests.families import write_checkpoint

LENGTHS = (40, 31)


@pytest.fixture(scope="module", params=[("7b", "int8"), ("34b", "int8"), ("7b", "int4")], ids="-".join)
def bundle(request, bundle_of):
    return bundle_of(*request.param, "native")


@pytest.fixture(scope="module")
def sequences(bundle):
    rng = np.random.default_rng(1)
    return [rng.integers(10, bundle.manifest.vocabulary.size, count).tolist() for count in LENGTHS]


@pytest.fixture(scope="module")
def whole(bundle, sequences):
    """Logits of every token, each sequence in one pass, on one thread."""
    return [every_logit(NativeEngine(bundle, 1), sequence) for sequence in sequences]


def every_logit(engine, sequence, widths=(None,)):
    size = engine.bundle.manifest.vocabulary.size
    rows = engine.open((len(sequence), 0))
    out, fed, turn = np.empty((len(sequence), size), np.float32), 0, 0
    while fed < len(sequence):
        end = min(fed + (widths[turn % len(widths)] or len(sequence)), len(sequence))
        (out[fed:end],) = rows.forward([Segment(0, sequence[fed:end], end - fed)], "text")
        fed, turn = end, turn + 1
    return out


@torch.inference_mode()
def reference(checkpoint, sequence, precision):
    """Logits of every token by the plain PyTorch decoder, its linears as `precision` has them."""
    config = checkpoint.config
    x = embedded(checkpoint.tensor("model.embed_tokens.weight")[sequence], precision, "native")[None]
    attend = causal_attention(config, len(sequence), x.device)
    for layer in range(config.num_layers):
        x = load_block(checkpoint, layer, precision, "native")(x, attend)
    norm = checkpoint.tensor("model.norm.weight").float()
    x = torch.nn.functional.rms_norm(x, x.shape[-1:], norm, config.norm_eps)
    return quantised_linear(checkpoint.tensor("lm_head.weight"), precision, "native")(x)[0].numpy()


def test_as_near_to_float32_as_the_reference_of_its_precision(request, bundle, sequences, whole, checkpoints):
    """The cache in int8 adds little to what the linears lose; a mistake anywhere would add far more."""
    family, precision = request.node.callspec.params["bundle"]
    checkpoint = Checkpoint.open(checkpoints[family])
    for sequence, got in zip(sequences, whole, strict=True):
        exact = reference(checkpoint, sequence, "fp32")
        lost = np.linalg.norm(reference(checkpoint, sequence, precision) - exact)
        assert lost < {"int8": 0.1, "int4": 0.5}[precision] * np.linalg.norm(exact)
        assert np.linalg.norm(got - exact) < 1.5 * lost


@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_same_bits_on_any_cpu_and_threads(bundle, sequences, whole, kernels, threads):
    assert np.array_equal(every_logit(NativeEngine(bundle, threads, kernels), sequences[0]), whole[0])


@settings(max_examples=40)
@given(widths=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_same_bits_at_any_width(bundle, sequences, whole, widths):
    engine = NativeEngine(bundle, 1)
    assert np.array_equal(every_logit(engine, sequences[0], widths), whole[0])


def test_rows_do_not_know_each_other(bundle, sequences, whole):
    engine = NativeEngine(bundle, 2)
    rows, fed = engine.open(LENGTHS), [0, 0]
    for counts in ((9, 3), (1, 1), (1, 1), (2, 2), (1, 5), (7, 1), (12, 0), (0, 1), (1, 1)):
        parts = tuple(s[done : done + count] for s, done, count in zip(sequences, fed, counts, strict=True))
        fed = [done + count for done, count in zip(fed, counts, strict=True)]
        feeds = [Segment(row, part) for row, part in enumerate(parts) if part]
        for feed, got in zip(feeds, rows.forward(feeds, "text"), strict=True):
            assert np.array_equal(got[0], whole[feed.sequence][fed[feed.sequence] - 1])
        assert [rows.length(row) for row in (0, 1)] == fed


def test_image_head_is_a_slice_of_the_text_head(bundle, sequences, whole):
    low, high = bundle.manifest.vocabulary.code_range
    (image,) = NativeEngine(bundle, 1).open((40, 0)).forward([Segment(0, sequences[0])], "image")
    assert np.array_equal(image[0], whole[0][-1, low:high])


def test_rollback_and_prefix_leave_no_trace(bundle, sequences, whole):
    rows = NativeEngine(bundle, 1).open((40, 40))
    rows.forward([Segment(0, sequences[0][:20]), Segment(1, sequences[1][:5])], "text")
    rows.forward([Segment(0, sequences[1][:7])], "text")
    rows.rollback(0, 20)
    assert np.array_equal(rows.forward([Segment(0, sequences[0][20:23])], "text")[0][0], whole[0][22])
    rows.copy_prefix(0, 1, 18)
    assert (rows.length(0), rows.length(1)) == (23, 18)
    assert np.array_equal(rows.forward([Segment(1, sequences[0][18:30])], "text")[0][0], whole[0][29])


def test_streams_share_passes_and_nothing_else(bundle, sequences, whole):
    rows = NativeEngine(bundle, 2).open((40, 31), streams=3)
    rows.forward([Segment(2, sequences[0][:30]), Segment(5, sequences[1][:11])], "text")
    rows.copy_prefix(2, 4, 25)
    feeds = [
        Segment(5, sequences[1][11:20], 4),
        Segment(0, sequences[0][:9], 9),
        Segment(4, sequences[0][25:]),
        Segment(2, [3], 0),
    ]
    second, first, copied, none = rows.forward(feeds, "text")
    assert np.array_equal(second, whole[1][16:20])
    assert np.array_equal(first, whole[0][:9])
    assert np.array_equal(copied, whole[0][39:])
    assert len(none) == 0
    assert [rows.length(row) for row in range(6)] == [9, 0, 31, 0, 40, 20]


def test_a_pass_that_does_not_fit_changes_nothing(bundle, sequences, whole):
    rows = NativeEngine(bundle, 1).open((10, 4))
    rows.forward([Segment(0, sequences[0][:6])], "text")
    with pytest.raises(IndexError, match="sequence 1 holds 4 tokens, 5 do not fit"):
        rows.forward([Segment(0, sequences[0][6:8]), Segment(1, sequences[1][:5])], "text")
    with pytest.raises(IndexError, match="not within the vocabulary"):
        rows.forward([Segment(0, [10**6])], "text")
    with pytest.raises(IndexError, match="no sequence 2"):
        rows.forward([Segment(2, [1])], "text")
    with pytest.raises(ValueError, match="of 3 tokens were asked for, a segment has 2"):
        rows.forward([Segment(0, [1, 2], 3)], "text")
    with pytest.raises(IndexError, match="can't go back to 7"):
        rows.rollback(0, 7)
    assert (rows.length(0), rows.length(1)) == (6, 0)
    assert np.array_equal(rows.forward([Segment(0, sequences[0][6:8])], "text")[0][0], whole[0][7])


@pytest.mark.parametrize("threads", [11, 16])
def test_more_threads_than_there_is_work(bundle, sequences, whole, threads):
    """Some members have neither a head nor a block of the feed-forward; all compute logits."""
    (text,) = NativeEngine(bundle, threads).open((40, 0)).forward([Segment(0, sequences[0])], "text")
    assert np.array_equal(text[0], whole[0][-1])


def test_a_row_is_fed_once_a_pass(bundle, sequences):
    rows = NativeEngine(bundle, 1).open((40, 40))
    with pytest.raises(ValueError, match="sequence 1 is fed twice"):
        rows.forward([Segment(1, sequences[0][:2]), Segment(1, sequences[0][2:4])], "text")
    assert rows.length(1) == 0


def test_python_threads_share_an_engine(bundle, sequences, whole):
    """Each opens rows of its own, longer ones later, so that tables grow while others compute."""
    engine = NativeEngine(bundle, 2)

    def run(number):
        rows = engine.open((40 + 500 * number, 0))
        for token in sequences[0][:-1]:
            rows.forward([Segment(0, [token])], "text")
        return rows.forward([Segment(0, sequences[0][-1:])], "text")[0][0].copy()

    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(run, range(4)):
            assert np.array_equal(logits, whole[0][-1])


def test_the_file_is_safetensors_in_whole_cache_lines(bundle):
    path = bundle.path(FILE)
    mapped, said = map_tensors(path)
    read = load_file(path)
    assert said["norm_after"] in {"true", "false"}
    assert set(mapped) == set(read)
    for name, tensor in mapped.items():
        assert tensor.ctypes.data % 64 == 0
        if tensor.dtype != np.uint16:  # bfloat16
            assert np.array_equal(tensor, read[name])


def test_packed_weights_are_where_the_kernels_look():
    weight = np.random.default_rng(0).normal(size=(35, 24)).astype(np.float32)
    packed, scale = native.pack8(weight)
    assert packed.shape == (3, 6, 16, 4)
    for channel, row in enumerate(weight):
        bytes_ = packed[channel // 16, :, channel % 16, :].reshape(-1).astype(np.int32) - 128
        np.testing.assert_allclose(bytes_ * scale[channel], row, atol=0.51 * scale[channel])
    assert not scale[35:].any()


def test_packed_halves_are_where_the_kernels_look():
    weight = np.random.default_rng(0).normal(size=(35, 64)).astype(np.float32)
    packed, scale = native.pack4(weight)
    assert (packed.shape, scale.shape) == ((3, 8, 16, 4), (3, 2, 16))
    values = int4.unpack(*int4.pack(weight))
    for channel, row in enumerate(values):
        bytes_ = packed[channel // 16, :, channel % 16, :]
        halves = np.stack((bytes_ & 15, bytes_ >> 4), 1).reshape(2, 32).astype(np.int32) - 8
        scales = (scale[channel // 16, :, channel % 16].astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal((halves * scales[:, None]).reshape(-1), row)


def test_sizes_that_do_not_fit_the_kernels_are_refused(checkpoints, tmp_path):
    checkpoint = Checkpoint.open(checkpoints["7b"])
    with pytest.raises(InvalidRequest, match="ffn 100; use --engine cpu"):
        list(native.write_decoder(checkpoint, replace(checkpoint.config, intermediate_size=100), "int8", tmp_path))


@pytest.mark.parametrize("damage", ["short", "header", "shape", "missing"])
def test_a_damaged_file_is_an_error(bundle, tmp_path, damage):
    data = bundle.path(FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if damage == "short":
        data = data[: len(data) // 2]
    elif damage == "header":
        data = (1 << 60).to_bytes(8, "little") + data[8:]
    else:
        if damage == "shape":
            header["norm"]["shape"] = [3]
        else:
            del header["head"]
        text = json.dumps(header).encode().ljust(length)
        data = data[:8] + text + data[8 + length :]
    path = tmp_path / FILE
    path.write_bytes(data)
    with pytest.raises(BundleError, match="export the checkpoint again"):
        load_decoder(path, bundle.manifest.dimensions, bundle.manifest.vocabulary.size, 1)


@pytest.mark.parametrize("engine", ["native", "cpu"])
def test_int4_keeps_8_bits_where_blocks_do_not_divide(engine, tmp_path):
    write_checkpoint(tmp_path / "checkpoint", {"intermediate_size": 80}, vq=False)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precision="int4", engine=engine, target_size=128)
    assert recompute(bundle, load_engine(bundle, 1)) < 0.05
