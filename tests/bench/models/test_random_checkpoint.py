from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mgpt_edge.bench.models.random_checkpoint import SHAPES, main, write_checkpoint
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.vqfiles import vq_shapes
from mgpt_edge.export.vqgan import CHAMELEON


def test_the_command_writes_a_checkpoint_that_opens(tmp_path, capsys):
    assert main(["--shape", "tiny", "-o", str(tmp_path / "made")]) == 0
    assert "GB in" in capsys.readouterr().out
    checkpoint = Checkpoint.open(tmp_path / "made")
    assert checkpoint.dtype("lm_head.weight") == torch.bfloat16
    assert checkpoint.defaults.target_size == 128


def test_without_vq(tmp_path):
    assert main(["--shape", "tiny", "-o", str(tmp_path), "--no-vq"]) == 0
    assert Checkpoint.open(tmp_path).vq_config is None


def test_a_family_vocabulary_has_the_golden_ids(tmp_path):
    shape = SHAPES["375m"]
    small = replace(shape.decoder, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8)
    write_checkpoint(tmp_path, replace(shape, decoder=small), vq=False)
    vocabulary = Checkpoint.open(tmp_path).vocabulary
    assert (vocabulary.size, vocabulary.begin_image, vocabulary.separator) == (65536, 8197, 8710)


def test_lumina_mgpt_2_has_the_published_ids_and_sizes(tmp_path):
    assert SHAPES["2.0-7b"].decoder.parameters == pytest.approx(7.88e9, rel=1e-3)
    assert SHAPES["2.0-2b"].decoder.parameters == pytest.approx(2.85e9, rel=1e-3)
    shape = SHAPES["2.0-7b"]
    small = replace(shape.decoder, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8)
    write_checkpoint(tmp_path, replace(shape, decoder=small), vq=False)
    v = Checkpoint.open(tmp_path).vocabulary
    assert (v.size, v.begin_image, v.end_image, v.end_row) == (171385, 151665, 151666, 151670)
    assert (v.code_range, v.grid(0), v.bos, v.separator) == ((155000, 171384), 151671, 151643, None)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_checkpoint(tmp_path / name, SHAPES["tiny"], seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_weights_are_of_trained_size(tmp_path):
    write_checkpoint(tmp_path, SHAPES["tiny"], dtype=torch.float32)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["model.layers.0.mlp.down_proj.weight"].std() == pytest.approx(160**-0.5, rel=0.05)
    assert weights["model.norm.weight"].mean() == pytest.approx(1, abs=0.1)
    assert weights["model.layers.0.self_attn.q_norm.bias"].abs().min() > 0


def test_an_interrupted_run_leaves_no_half_file(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, SHAPES["tiny"], report=interrupt)
    assert not list(tmp_path.glob(".*")) + list(tmp_path.glob("*.safetensors"))


def test_the_vq_model_has_the_published_shape():
    shapes = vq_shapes(CHAMELEON)
    assert shapes["quantize.embedding.weight"] == (8192, 256)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert "encoder.down.4.downsample.conv.weight" not in shapes
    assert "decoder.up.0.upsample.conv.weight" not in shapes
