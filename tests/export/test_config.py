from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from mgpt_edge.bench.models.random_checkpoint import SHAPES, config_json
from mgpt_edge.export.config import HARMLESS, NEUTRAL, DecoderConfig
from mgpt_edge.runtime.errors import CheckpointError, CompatibilityWarning

GOOD = {
    "architectures": ["ChameleonForConditionalGeneration"],
    "model_type": "chameleon",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def read(**changes: Any) -> DecoderConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DecoderConfig.from_json(GOOD | changes)


def test_defaults_are_those_of_the_family():
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.model_parallel_size) == (4, 16, 1)
    assert (config.norm_eps, config.rope_theta, config.swin_norm, config.tied_embeddings) == (
        1e-5,
        10000.0,
        False,
        False,
    )


@pytest.mark.parametrize(("name", "billions"), [("7b", 7.013), ("34b", 34.29)])
def test_parameter_counts_of_the_published_sizes(name, billions):
    assert SHAPES[name].decoder.parameters / 1e9 == pytest.approx(billions, abs=5e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_written_configs_are_read_back(name):
    config = SHAPES[name].decoder
    assert DecoderConfig.from_json(config_json(config, torch.bfloat16)) == config


def test_every_key_that_transformers_writes_is_known():
    ours = SHAPES["34b"].decoder
    theirs = transformers.ChameleonConfig(
        hidden_size=8192, intermediate_size=22016, num_hidden_layers=48, num_attention_heads=64, num_key_value_heads=8,
        model_parallel_size=4, swin_norm=True, vocabulary_map={"<image>": 8711},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for written in (theirs.to_dict(), theirs.to_diff_dict()):
            written["architectures"] = ["ChameleonForConditionalGeneration"]
            assert DecoderConfig.from_json(written) == ours


@pytest.mark.parametrize("theta", [5000, 1e6])
def test_rope_theta_of_either_transformers(theta):
    assert read(rope_theta=theta).rope_theta == theta
    assert read(rope_parameters={"rope_type": "default", "rope_theta": theta}).rope_theta == theta


def test_a_checkpoint_that_only_reads_pictures_is_warned_of():
    with pytest.warns(CompatibilityWarning, match="mask_image_logits is true"):
        DecoderConfig.from_json({**GOOD, "mask_image_logits": True})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "nearest it reads is 'Chameleon"),
        ({"model_type": "chamelion"}, "nearest it reads is 'chameleon'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": 1}, "mlp_bias"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "plain rotary"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'default'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e4}, "rope_theta": 2e4}, "rope_theta is 20000"),
        ({"rope_parameters": []}, "rope_parameters"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is 'bitsandbytes'.*unquantised"),
        ({"sliding_window": 1024}, "sliding_window"),
        ({"attention_multiplier": 0.1}, "attention_multiplier"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": 10**12}, "from 1 to 1024"),
        ({"num_attention_heads": 0}, "num_heads"),
        ({"hidden_size": 65}, "not a multiple of 4 heads"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"model_parallel_size": 3}, "model_parallel_size 3 must divide"),
        ({"rms_norm_eps": math.nan}, "norm_eps"),
        ({"rms_norm_eps": 0}, "norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": True}, "rope_theta"),
        ({"dropout": -0.1}, "dropout"),
        ({"swin_norm": "yes"}, "swin_norm"),
        ({"head_dim": 15}, "must be even"),
    ],
)
def test_what_would_change_the_results_is_refused(changes, said):
    with pytest.raises(CheckpointError, match=said):
        read(**changes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*sorted(HARMLESS), *NEUTRAL]), JSON, max_size=6))
def test_whatever_stands_in_the_file_gives_a_config_or_our_error(changes):
    with warnings.catch_warnings(), contextlib.suppress(CheckpointError):
        warnings.simplefilter("ignore")
        assert DecoderConfig.from_json(GOOD | changes).parameters > 0


def test_a_misspelt_key_is_pointed_out():
    config = {key: value for key, value in GOOD.items() if key != "hidden_size"} | {"hiden_size": 64}
    with pytest.warns(CompatibilityWarning, match="hiden_size"), pytest.raises(CheckpointError, match="'hiden_size'"):
        DecoderConfig.from_json(config)


def test_unknown_keys_are_named_once():
    with pytest.warns(CompatibilityWarning) as caught:
        DecoderConfig.from_json(GOOD | {"flux": 1, "capacitor": 2, "sep_token_id": 3})
    assert [str(warning.message) for warning in caught] == [
        "config.json: ignored keys this package does not know: capacitor, flux"
    ]
