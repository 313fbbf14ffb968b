"""Statistics of what linears are given, against transformers' Chameleon; and what equalising makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt_edge.bench.rivals.reference import chameleon
from mgpt_edge.export import statistics
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.equalise import equalise, smooth
from mgpt_edge.export.golden import golden_logits
from mgpt_edge.export.rounding import rounded
from mgpt_edge.export.statistics import INPUTS, Statistics, collect
from mgpt_edge.runtime.errors import CheckpointError, InvalidRequest
from tests.families import write_checkpoint
from tests.reference import load_decoder

LENGTHS = (19, 7, 12)


def sequences(checkpoint):
    rng = np.random.default_rng(0)
    return [rng.integers(4, checkpoint.vocabulary.size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=["7b", "34b"])
def checkpoint(request, checkpoints):
    return Checkpoint.open(checkpoints[request.param])


@pytest.fixture(scope="module")
def measured(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "statistics.safetensors"
    return collect(checkpoint, sequences(checkpoint), path), path


def test_equals_what_transformers_linears_are_given(checkpoint, measured):
    model = chameleon(checkpoint)[0]
    seen = {}
    for layer, block in enumerate(model.layers):
        for name, (module, *_) in INPUTS.items():
            keep = seen.setdefault(f"{layer}.{name}", [])
            block.get_submodule(module).register_forward_pre_hook(lambda _, x, keep=keep: keep.append(x[0][0]))
    with torch.inference_mode():
        seen["head"] = [
            model(input_ids=torch.tensor([sequence])).last_hidden_state[0] for sequence in sequences(checkpoint)
        ]
    found, _ = measured
    assert found.tokens == sum(LENGTHS)
    assert found.largest.keys() == found.square.keys() == seen.keys()
    for name, parts in seen.items():
        x = torch.cat(parts)
        torch.testing.assert_close(found.largest[name], x.abs().amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.square[name], x.square().mean(0), rtol=1e-4, atol=1e-6)


def test_what_was_written_is_read(checkpoint, measured):
    found, path = measured
    again = Statistics.load(path, checkpoint)
    assert (again.checkpoint, again.tokens) == (found.checkpoint, found.tokens)
    assert all(torch.equal(again.square[name], value) for name, value in found.square.items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_killed_run_goes_on_with_the_next_layer(checkpoint, measured, tmp_path, monkeypatch):
    path, done = tmp_path / "statistics.safetensors", []

    def killed(layer, _):
        if layer == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, sequences(checkpoint), path, killed)
    assert not path.exists()
    load = statistics.load_block
    monkeypatch.setattr(statistics, "load_block", lambda *given: done.append(given[1]) or load(*given))
    collect(checkpoint, sequences(checkpoint), path)
    assert done == list(range(1, checkpoint.config.num_layers))
    again, whole = load_file(path), load_file(measured[1])
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    # Other sequences begin anew.
    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, sequences(checkpoint), path, killed)
    done.clear()
    collect(checkpoint, sequences(checkpoint)[:2], path)
    assert done[0] == 0


def test_statistics_of_another_checkpoint_are_refused(checkpoints, measured, checkpoint):
    other = Checkpoint.open(checkpoints["34b" if checkpoint.config.swin_norm is False else "7b"])
    with pytest.raises(InvalidRequest, match="mgpt calibrate"):
        Statistics.load(measured[1], other)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_a_file_without_statistics_names_the_command(content, checkpoint, tmp_path):
    path = tmp_path / "statistics.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="mgpt calibrate CHECKPOINT"):
        Statistics.load(path, checkpoint)


def test_nothing_to_calibrate_on_is_an_error(checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match="no sequences"):
        collect(checkpoint, [], tmp_path / "statistics.safetensors")


def test_a_damaged_weight_is_named_by_its_layer(tmp_path):
    folder = write_checkpoint(tmp_path, {}, vq=False)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="layer 1 gives numbers that are not finite"):
        collect(Checkpoint.open(folder), [[5, 6, 7]], tmp_path / "statistics.safetensors")


def uneven(statistics_):
    """The same statistics with a few channels that carry a hundred times as much."""
    rng = torch.Generator().manual_seed(0)
    square = {
        name: value * torch.where(torch.rand(value.shape, generator=rng) < 0.05, 1e4, 1.0)
        for name, value in statistics_.square.items()
    }
    return Statistics(statistics_.checkpoint, statistics_.tokens, statistics_.largest, square)


def factors(changed, name):
    """What a tensor is multiplied by."""
    return changed.changes[name](torch.ones(changed.shape(name)))


def test_equalised_it_computes_the_same_to_the_bit(checkpoint, measured):
    changed = equalise(checkpoint, uneven(measured[0]), "int4", "native")
    assert any((factors(changed, name) != 1).any() for name in changed.changes)
    tokens = torch.tensor([sequences(checkpoint)[0]])
    with torch.inference_mode():
        before, after = (load_decoder(one).logits(tokens) for one in (checkpoint, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize(("precision", "engine"), [("int4", "native"), ("int4", "rtx"), ("int8", "rtx")])
def test_weights_are_rounded_better_where_it_matters(precision, engine, checkpoint, measured):
    wanted = uneven(measured[0])
    changed = equalise(checkpoint, wanted, precision, engine)

    def wrong(one):
        """Mean squared error of the outputs, inputs independent and as large as measured."""
        total = 0.0
        for layer in range(checkpoint.config.num_layers):
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            plain, left = checkpoint.tensor(name).float(), rounded(one.tensor(name), precision, engine)
            error = (left / factors(changed, name) if one is changed else left) - plain
            total += float((error.square() * wanted.square[f"{layer}.gated"]).sum())
        return total

    assert wrong(changed) < 0.7 * wrong(checkpoint)


def outliers(statistics_):
    """The same statistics with a few channels that are a hundred times as large."""
    rng = torch.Generator().manual_seed(0)
    largest = {
        name: value * torch.where(torch.rand(value.shape, generator=rng) < 0.05, 100.0, 1.0)
        for name, value in statistics_.largest.items()
    }
    return Statistics(statistics_.checkpoint, statistics_.tokens, largest, statistics_.square)


def test_smoothed_it_computes_the_same_with_smaller_inputs(checkpoint, measured):
    given = outliers(measured[0])
    changed, left = smooth(checkpoint, given)
    tokens = torch.tensor([sequences(checkpoint)[0]])
    with torch.inference_mode():
        before, after = (load_decoder(one).logits(tokens) for one in (checkpoint, changed))
    assert torch.equal(before, after)
    weight = "model.layers.0.mlp.down_proj.weight"
    torch.testing.assert_close(left.largest["0.gated"] * factors(changed, weight)[0], given.largest["0.gated"])
    spread = [float(one.largest["0.gated"].max() / one.largest["0.gated"].median()) for one in (given, left)]
    assert spread[1] < spread[0] / 4


def test_golden_logits_follow_the_rescaled_weights(checkpoint, measured):
    changed = equalise(checkpoint, uneven(measured[0]), "int4", "native")
    exact = np.array(golden_logits(checkpoint, "fp32", "cpu").logits)
    np.testing.assert_array_equal(golden_logits(changed, "fp32", "cpu").logits, exact)
    assert not np.array_equal(golden_logits(changed, "int4", "native").logits, exact)
