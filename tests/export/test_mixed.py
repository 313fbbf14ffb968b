"""Bundles in two precisions: 8 bits where they help most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mgpt_edge.bench.rivals.reference import chameleon
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.equalise import equalise
from mgpt_edge.export.quantise.mixed import WIDE_SHARE, mix
from mgpt_edge.export.rounding import precision_of, rounded
from mgpt_edge.export.statistics import INPUTS, PROBED, collect
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.engines.native import FILE
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.golden import recompute

LENGTHS = (19, 7, 12, 5, 30)


@pytest.fixture(scope="module", params=["7b", "34b"])
def checkpoint(request, checkpoints):
    return Checkpoint.open(checkpoints[request.param])


@pytest.fixture(scope="module")
def sequences(checkpoint):
    rng = np.random.default_rng(0)
    return [rng.integers(4, checkpoint.vocabulary.size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def statistics(checkpoint, sequences, tmp_path_factory):
    return collect(checkpoint, sequences, tmp_path_factory.mktemp("statistics") / "file")


@torch.inference_mode()
def test_harm_is_what_transformers_block_loses(checkpoint, sequences, statistics):
    model = chameleon(checkpoint)[0]

    def block_output(layer):
        kept = []
        hook = model.layers[layer].register_forward_hook(lambda *given: kept.append(given[2]))
        for sequence in sequences[:PROBED]:
            model(input_ids=torch.tensor([sequence]))
        hook.remove()
        return torch.cat([(states[0] if isinstance(states, tuple) else states).flatten(0, -2) for states in kept])

    for layer in range(checkpoint.config.num_layers):
        exact = block_output(layer)
        for name, modules in INPUTS.items():
            linears = [model.layers[layer].get_submodule(module) for module in modules]
            before = [linear.weight.clone() for linear in linears]
            for linear in linears:
                linear.weight.copy_(rounded(linear.weight, "int4", "native"))
            lost = (block_output(layer) - exact).square().sum() / exact.square().sum()
            for linear, weight in zip(linears, before, strict=True):
                linear.weight.copy_(weight)
            torch.testing.assert_close(statistics.harm[f"{layer}.{name}"], lost, rtol=1e-3, atol=1e-7)
    assert len(statistics.harm) == len(INPUTS) * checkpoint.config.num_layers + 1


def test_8_bits_are_for_a_share_of_the_weights(checkpoint, statistics):
    mixed = mix(equalise(checkpoint, statistics, "int4", "native"), statistics)
    assert mixed.wide
    weights = [name for name in checkpoint.config.shapes() if precision_of(mixed, name, "mixed") == "int8"]
    assert sorted(weights) == sorted(mixed.wide)
    linears = ("_proj.weight", "lm_head.weight")
    sizes = {name: checkpoint.tensor(name).numel() for name in checkpoint.config.shapes() if name.endswith(linears)}
    assert sum(sizes[name] for name in mixed.wide) <= WIDE_SHARE * sum(sizes.values())


@pytest.mark.parametrize("name", ["0.mixed", "1.attention"])
def test_8_bits_go_where_4_cost_most(name, checkpoint, statistics):
    harm = {key: torch.tensor(1.0 if key == name else 1e-9) for key in statistics.harm}
    layer, kind = name.split(".")
    readers = {f"model.layers.{layer}.{module}.weight" for module in INPUTS[kind]}
    assert readers <= mix(checkpoint, replace(statistics, harm=harm)).wide


@pytest.fixture(scope="module")
def bundle(checkpoint, statistics, tmp_path_factory):
    return export_bundle(checkpoint, tmp_path_factory.mktemp("mixed") / "b", precision="mixed", statistics=statistics)


PARTS = {"qkv": "self_attn.q_proj", "out": "self_attn.o_proj", "gate_up": "mlp.gate_proj", "down": "mlp.down_proj"}


def test_a_bundle_has_both_and_computes_its_golden_logits(bundle, checkpoint, statistics):
    wide = mix(checkpoint, statistics).wide
    scales = {name: scale.dtype for name, scale in load_file(bundle.folder / FILE).items() if name.endswith(".scale")}
    for layer in range(checkpoint.config.num_layers):
        for part, module in PARTS.items():
            kept = f"model.layers.{layer}.{module}.weight" in wide
            assert scales[f"layers.{layer}.{part}.scale"] == (torch.float32 if kept else torch.bfloat16)
    assert bundle.manifest.width_invariant
    recompute(bundle, load_engine(bundle, 1))


def test_statistics_are_needed(checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match=r"mixed depends on what the layers are given, .*mgpt calibrate"):
        export_bundle(checkpoint, tmp_path / "b", precision="mixed")
