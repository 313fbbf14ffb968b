"""GPTQ against least squares written out, packing that finds its values again, and runs that are killed or mixed up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.linalg import lstsq

from mgpt_edge.export import gptq
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.golden import hidden_states
from mgpt_edge.export.gptq import round_checkpoint, rounded_checkpoint
from mgpt_edge.export.quantise import compensation as scheme
from mgpt_edge.export.quantise import int4, weight_only
from mgpt_edge.export.quantise.compensation import compensated
from mgpt_edge.export.rounding import rounded
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from mgpt_edge.runtime.golden import recompute
from mgpt_edge.runtime.model import Model
from tests.families import write_checkpoint


def correlated(rng, tokens, width):
    return (rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width))).astype(np.float32)


def dequantised(values, scales):
    return (values.unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1).numpy()


def by_least_squares(weight, inputs, blocks):
    """Rounds one input at a time; then those left are fitted anew to what the exact weight makes of the inputs."""
    left, made = weight.astype(np.float64), np.zeros(weight.shape)
    wanted = inputs.astype(np.float64) @ weight.T
    for i in range(weight.shape[1]):
        if i % blocks.BLOCK == 0:
            scale, end, value = blocks.scaled(left[:, i : i + blocks.BLOCK].astype(np.float32))
        nearest = np.clip(np.rint(left[:, i] / scale), -8, 7)
        made[:, i] = np.where(end == i % blocks.BLOCK, value, nearest) * scale
        if i + 1 < weight.shape[1]:
            rest = wanted - inputs[:, : i + 1] @ made[:, : i + 1].T
            left[:, i + 1 :] = lstsq(inputs[:, i + 1 :], rest)[0].T
    return made


@pytest.mark.parametrize("blocks", [int4, weight_only])
def test_is_rounding_and_least_squares_in_turn(blocks, monkeypatch):
    monkeypatch.setattr(scheme, "DAMPING", 0.0)
    rng = np.random.default_rng(0)
    width = 2 * blocks.BLOCK
    weight, inputs = rng.normal(size=(6, width)).astype(np.float32), correlated(rng, 3 * width, width)
    moments = torch.from_numpy(inputs.astype(np.float64).T @ inputs)
    found = dequantised(*compensated(torch.from_numpy(weight), moments, blocks))
    expected = by_least_squares(weight, inputs.astype(np.float64), blocks)
    # A value half way between two steps may fall to either side, and all behind it differ then.
    same = np.isclose(found, expected, rtol=1e-5, atol=1e-6).all(1)
    assert same.mean() >= 0.5
    wrong, plain = (np.square(inputs @ (w - weight).T).sum() for w in (found, expected))
    assert wrong == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize("blocks", [int4, weight_only])
def test_outputs_are_closer_than_by_rounding_to_the_nearest(blocks):
    rng = np.random.default_rng(1)
    weight, inputs = rng.normal(size=(16, 256)).astype(np.float32), correlated(rng, 1000, 256)
    found = dequantised(*compensated(torch.from_numpy(weight), torch.from_numpy(inputs.T @ inputs), blocks))
    nearest = rounded(torch.from_numpy(weight), "int4", "cpu" if blocks is int4 else "cuda").numpy()
    wrong, plain = (np.square(inputs @ (w - weight).T).sum() for w in (found, nearest))
    assert wrong < 0.5 * plain


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 300.0]), sparse=st.floats(0, 1))
@pytest.mark.parametrize("blocks", [int4, weight_only])
def test_packing_finds_the_values_again(blocks, seed, scale, sparse):
    rng = np.random.default_rng(seed)
    weight = scale * rng.normal(size=(5, 2 * blocks.BLOCK)) * (rng.random((5, 2 * blocks.BLOCK)) >= sparse)
    inputs = correlated(rng, 50, 2 * blocks.BLOCK)
    moments = torch.from_numpy(inputs.T @ inputs)
    values, scales = compensated(torch.from_numpy(weight.astype(np.float32)), moments, blocks)
    again = dequantised(values, scales)
    if blocks is int4:
        packed, found = int4.pack(again)
        np.testing.assert_array_equal(int4.unpack(packed, found), again)
    else:
        packed, found = weight_only.pack(again, 4)
        np.testing.assert_array_equal(packed.T, values)
        np.testing.assert_array_equal(found.T, scales)


def test_inputs_that_are_never_given_anything_do_no_harm():
    values, scales = compensated(torch.randn(3, 64), torch.zeros(64, 64), int4)
    assert np.isfinite(dequantised(values, scales)).all()


LENGTHS = (90, 70, 80)


def sequences(checkpoint, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, checkpoint.vocabulary.size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return Checkpoint.open(checkpoints["7b"])


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptq") / "native"
    round_checkpoint(checkpoint, sequences(checkpoint), folder, "native")
    return folder


def test_bundle_has_the_rounded_weights_and_follows_the_checkpoint_better(checkpoint, folder, tmp_path):
    changed = rounded_checkpoint(checkpoint, folder, "native")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(changed.tensor(name), rounded(checkpoint.tensor(name), "int4", "native"))
    assert torch.equal(changed.tensor(name), rounded(changed.tensor(name), "int4", "native"))
    given = sequences(checkpoint)
    exact = hidden_states(checkpoint, given)
    wrong, plain = (
        float((hidden_states(those, given, "int4", "native") - exact).square().mean())
        for those in (changed, checkpoint)
    )
    assert wrong < 0.8 * plain
    bundle = export_bundle(changed, tmp_path / "bundle", precision="int4", engine="native")
    assert recompute(bundle, Model(bundle).engine) < 0.05
    assert bundle.manifest.created["checkpoint"] == checkpoint.fingerprint()


def test_codes_stay_where_their_head_has_more_bits(checkpoint, folder):
    """The engines share blocks, and so what was rounded for the one serves the other."""
    head, codes = "lm_head.weight", slice(*checkpoint.vocabulary.code_range)
    exact, words = checkpoint.tensor(head), slice(checkpoint.vocabulary.code_range[1], None)
    in_4_bits, in_8_bits = (rounded_checkpoint(checkpoint, folder, engine).tensor(head) for engine in ("native", "cpu"))
    assert torch.equal(in_8_bits[codes], exact[codes])
    assert not torch.equal(in_4_bits[codes], exact[codes])
    assert torch.equal(in_8_bits[words], in_4_bits[words])


def test_a_killed_run_goes_on_with_the_next_layer(checkpoint, folder, tmp_path, monkeypatch):
    def killed(layer, _):
        if layer == 1:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        round_checkpoint(checkpoint, sequences(checkpoint), again, "native", killed)
    with pytest.raises(InvalidRequest, match=r"1\.safetensors.*goes on"):
        rounded_checkpoint(checkpoint, again, "native")
    done, load = [], gptq.load_block
    monkeypatch.setattr(gptq, "load_block", lambda *given: done.append(given[1]) or load(*given))
    for _ in range(2):  # the second has nothing to do
        round_checkpoint(checkpoint, sequences(checkpoint), again, "native")
    assert done == list(range(1, checkpoint.config.num_layers))
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        expected, found = load_file(path), load_file(again / path.name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_damaged_weight_is_found(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    opened = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match="layer 1 has weights that are not finite"):
        round_checkpoint(opened, sequences(opened), tmp_path / "rounded", "native")


def test_what_does_not_belong_together_is_refused(checkpoint, checkpoints, folder, tmp_path):
    with pytest.raises(InvalidRequest, match="blocks of 32 inputs, here 128"):
        rounded_checkpoint(checkpoint, folder, "cuda")
    with pytest.raises(InvalidRequest, match="another checkpoint"):
        rounded_checkpoint(Checkpoint.open(checkpoints["34b"]), folder, "native")
    with pytest.raises(InvalidRequest, match="other data"):
        round_checkpoint(checkpoint, sequences(checkpoint, seed=1), folder, "native")
    with pytest.raises(InvalidRequest, match="'gpu'; known: native, cpu"):
        round_checkpoint(checkpoint, sequences(checkpoint), tmp_path, "gpu")
    with pytest.raises(InvalidRequest, match="no sequences"):
        round_checkpoint(checkpoint, [], tmp_path, "native")
    with pytest.raises(InvalidRequest, match="mgpt gptq"):
        rounded_checkpoint(checkpoint, tmp_path, "native")
