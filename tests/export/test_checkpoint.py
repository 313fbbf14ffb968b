from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mgpt_edge.export import hub
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.defaults import Defaults
from mgpt_edge.export.shards import Shards
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.runtime.errors import CheckpointError, CompatibilityWarning
from tests.families import LIKE_7B, LIKE_34B, write_checkpoint

KINDS = pytest.mark.parametrize("kind", [LIKE_7B, LIKE_34B], ids=["7B", "34B"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny", LIKE_34B)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@KINDS
@pytest.mark.parametrize("shard_bytes", [1 << 30, 50_000], ids=["one file", "shards"])
def test_tensors_are_those_of_safetensors(tmp_path, kind, shard_bytes):
    folder = write_checkpoint(tmp_path, kind, dtype=torch.bfloat16, shard_bytes=shard_bytes)
    checkpoint = Checkpoint.open(folder)
    files = sorted(folder.glob("model*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 50_000)
    theirs = {}
    for file in files:
        theirs |= load_file(file)
    assert set(checkpoint.names()) == set(theirs)
    for name, tensor in theirs.items():
        ours = checkpoint.tensor(name)
        assert ours.dtype == checkpoint.dtype(name) == tensor.dtype
        assert tuple(ours.shape) == checkpoint.shape(name)
        assert torch.equal(ours, tensor)
    assert checkpoint.total_bytes == sum(tensor.nbytes for tensor in theirs.values())


def test_transformers_opens_what_we_write(tmp_path):
    folder = write_checkpoint(tmp_path, LIKE_7B)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert (theirs.hidden_size, theirs.num_hidden_layers, theirs.vocab_size) == (64, 2, 512)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_qk_norm_rows_serve_neighbouring_heads(folder):
    checkpoint = Checkpoint.open(folder)
    stored = load_file(folder / "model.safetensors")
    q_weight, q_bias, k_weight, k_bias = checkpoint.qk_norm(1)
    assert (q_weight.shape, k_weight.shape) == ((8, 16), (4, 16))
    for head in range(8):
        assert torch.equal(q_weight[head], stored["model.layers.1.self_attn.q_norm.weight"][head // 2])
        assert torch.equal(q_bias[head], stored["model.layers.1.self_attn.q_norm.bias"][head // 2])
    assert torch.equal(k_weight, stored["model.layers.1.self_attn.k_norm.weight"])
    assert torch.equal(k_bias, stored["model.layers.1.self_attn.k_norm.bias"])


def test_qk_norm_may_be_stored_a_row_for_each_head(folder):
    before = Checkpoint.open(folder).qk_norm(0)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if ".q_norm." in name:
            tensors[name] = tensors[name].repeat_interleave(2, dim=0).contiguous()
    save_file(tensors, path)
    for ours, expected in zip(Checkpoint.open(folder).qk_norm(0), before, strict=True):
        assert torch.equal(ours, expected)


def test_qk_norm_of_mixed_conversions_is_refused(folder):
    def expand(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.self_attn.q_norm.weight"
        tensors[name] = tensors[name].repeat_interleave(2, dim=0).contiguous()

    rewrite(folder / "model.safetensors", expand)
    with pytest.raises(CheckpointError, match="has 8 rows, other q_norm tensors 4"):
        Checkpoint.open(folder)


def test_tied_embeddings_serve_as_the_head(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {"tied_embeddings": True}))
    assert "lm_head.weight" not in checkpoint.names()
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_reading_every_tensor_keeps_memory_flat(tmp_path):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    sizes = {"intermediate_size": 8192, "num_layers": 8, "hidden_size": 256, "num_heads": 4, "head_dim": 64}
    sizes["num_kv_heads"] = 4
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, sizes, dtype=torch.bfloat16, vq=False))
    assert checkpoint.total_bytes > 100e6
    before = most = resident()
    for name in checkpoint.names():
        checkpoint.tensor(name)
        most = max(most, resident())
    assert most - before < 30e6


def test_vq_weights_beside_the_checkpoint(folder):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.vq.has_decoder
    model = VQGAN(checkpoint.vq_config)
    model.load_state_dict({name: checkpoint.vq_tensor(name) for name in checkpoint.vq_names()})
    assert torch.equal(
        model.quantize.embedding.weight, load_file(folder / "vqgan.safetensors")["quantize.embedding.weight"]
    )


@pytest.mark.parametrize("how", ["folder", "file"])
def test_vq_weights_elsewhere(folder, tmp_path, how):
    other = tmp_path / "vq"
    other.mkdir()
    for name in ("vqgan.safetensors", "vqgan.yaml"):
        (folder / name).rename(other / name)
    assert Checkpoint.open(folder).vq_config is None
    with pytest.raises(CheckpointError, match="--vq"):
        Checkpoint.open(folder).vq_tensor("decoder.conv_in.weight")
    checkpoint = Checkpoint.open(folder, other if how == "folder" else other / "vqgan.safetensors")
    assert checkpoint.vq.has_decoder


def as_ckpt(folder: Path, extra: dict[str, Any] | None = None, **options: Any) -> dict[str, torch.Tensor]:
    """Turns the folder's VQ weights into a file like Meta's, with what its training left in it."""
    state = load_file(folder / "vqgan.safetensors")
    (folder / "vqgan.safetensors").unlink()
    left = {"loss.discriminator.main.0.weight": torch.ones(2), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": OrderedDict(state | left), "epoch": 3} | (extra or {}), folder / "vqgan.ckpt", **options)
    return state


@pytest.mark.parametrize("modern", [True, False])
def test_metas_ckpt(folder, modern):
    state = as_ckpt(folder, _use_new_zipfile_serialization=modern)
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.vq_names()) == set(state)
    assert all(torch.equal(checkpoint.vq_tensor(name), tensor) for name, tensor in state.items())


class Callback:
    """Stands for what a training framework leaves in its checkpoints; unpickling it would leave a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.putenv, ("MGPT_UNPICKLED", "1"))


@pytest.mark.parametrize("modern", [True, False])
def test_a_ckpt_with_code_is_refused_by_name(folder, modern):
    as_ckpt(folder, {"callbacks": Callback()}, _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"(?s)holds \w+\.putenv.*save_file"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), b"PK\x03\x04 no zip"])
def test_a_ckpt_that_is_none(folder, content):
    as_ckpt(folder)
    (folder / "vqgan.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vqgan\.ckpt"):
        Checkpoint.open(folder)


def with_encoder_inside(folder: Path) -> transformers.ChameleonForConditionalGeneration:
    """Replaces the folder's weights by a transformers model's, VQ encoder included."""
    vq = {
        "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "latent_channels": 16, "embed_dim": 16,
        "num_embeddings": 64, "resolution": 32,
    }  # fmt: skip
    model = transformers.ChameleonForConditionalGeneration(
        transformers.ChameleonConfig(
            hidden_size=64, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, vq_config=vq, vocabulary_map={"<image>": 5},
        )
    ).eval()  # fmt: skip
    for name in ("vqgan.safetensors", "vqgan.yaml", "model.safetensors"):
        (folder / name).unlink()
    model.save_pretrained(folder)
    return model


def test_the_encoder_inside_a_transformers_checkpoint_reads_pictures(folder):
    theirs = with_encoder_inside(folder)
    with pytest.warns(CompatibilityWarning, match="read pictures but not draw"):
        checkpoint = Checkpoint.open(folder)
    assert checkpoint.vq_config.codes == 64
    assert not checkpoint.vq.has_decoder
    ours = VQGAN(checkpoint.vq_config).eval()
    weights = {name: checkpoint.vq_tensor(name) for name in checkpoint.vq_names()}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all(name.startswith("decoder.") for name in missing)
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = theirs.model.vqmodel.encode(picture).image_tokens
        assert torch.equal(ours.encode(picture).flatten(), expected.flatten())


def test_qk_norm_of_a_transformers_checkpoint(folder):
    theirs = with_encoder_inside(folder).model.layers[0].self_attn
    with pytest.warns(CompatibilityWarning):
        q_weight, _, k_weight, _ = Checkpoint.open(folder).qk_norm(0)
    assert torch.equal(q_weight, theirs.q_norm.weight)
    assert torch.equal(k_weight, theirs.k_norm.weight)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def rewrite(path: Path, change: Any) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def damage(kind: str, folder: Path) -> None:
    weights, vq = folder / "model.safetensors", folder / "vqgan.safetensors"
    norm, strange = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
    {
        "no config": (folder / "config.json").unlink,
        "broken config": lambda: (folder / "config.json").write_text("{"),
        "no tokenizer": (folder / "tokenizer.json").unlink,
        "no weights": weights.unlink,
        "pickle": lambda: weights.rename(folder / "pytorch_model.bin"),
        "meta's layout": lambda: weights.rename(folder / "consolidated.00.pth"),
        "cut": lambda: cut(weights, 1),
        "cut in the header": lambda: weights.write_bytes(weights.read_bytes()[:100]),
        "empty": lambda: weights.write_bytes(b""),
        "longer": lambda: weights.write_bytes(weights.read_bytes() + b"x"),
        "missing tensor": lambda: rewrite(weights, lambda tensors: tensors.pop(norm)),
        "wrong shape": lambda: rewrite(weights, lambda t: t.update({norm: torch.ones(63)})),
        "quantised": lambda: rewrite(weights, lambda t: t.update({strange: t[strange].to(torch.uint8)})),
        "no yaml": (folder / "vqgan.yaml").unlink,
        "bad yaml": lambda: (folder / "vqgan.yaml").write_text("- 3"),
        "poor yaml": lambda: (folder / "vqgan.yaml").write_text("model: {params: {}}"),
        "vq tensor missing": lambda: rewrite(vq, lambda t: t.pop("decoder.conv_in.bias")),
        "vq of another shape": lambda: rewrite(vq, lambda t: t.update({"decoder.conv_in.bias": torch.ones(3)})),
        "mgpt.json key": lambda: edit_json(folder / "mgpt.json", guidanse=3),
        "mgpt.json value": lambda: edit_json(folder / "mgpt.json", target_size=100),
        "mgpt.json sizes": lambda: edit_json(folder / "mgpt.json", sizes=[128]),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no config", r"no config\.json"),
        ("broken config", "not valid JSON"),
        ("no tokenizer", r"no tokenizer\.json"),
        ("no weights", r"neither model\.safetensors nor"),
        ("pickle", "save_pretrained"),
        ("meta's layout", "convert_chameleon_weights_to_hf"),
        ("cut", "was cut short"),
        ("cut in the header", "within its header"),
        ("empty", "not a safetensors file"),
        ("longer", "belong to no tensor"),
        ("missing tensor", r"lacks 1 of \d+ tensors.*model\.norm\.weight"),
        ("wrong shape", r"shape \[128\].*got \[63\]"),
        ("quantised", r"torch\.uint8, expected float32"),
        ("no yaml", r"vqgan\.yaml: the VQ weights need this file"),
        ("bad yaml", "expected a mapping"),
        ("poor yaml", "ddconfig"),
        ("vq tensor missing", r"1 tensors.*decoder\.conv_in\.bias"),
        ("vq of another shape", r"\[32\] by its yaml, got \[3\]"),
        ("mgpt.json key", "'guidanse'; the nearest is 'guidance'"),
        ("mgpt.json value", "target_size must be a multiple of 32"),
        ("mgpt.json sizes", "sizes must be pairs"),
    ],
)
def test_damage_is_named(folder, kind, said):
    damage(kind, folder)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(folder)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(tmp_path):
    with pytest.raises(CheckpointError, match="a vocab_size of 128"):
        Checkpoint.open(write_checkpoint(tmp_path, {"vocab_size": 128}))


def test_a_config_that_is_not_of_these_weights(folder):
    edit_json(folder / "config.json", vocab_size=513)
    with pytest.raises(CheckpointError, match=r"\[513, 128\] by config\.json, got \[512, 128\]"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder, files: files[1].unlink(), r"1 of \d+ shards are missing: model-00002"),
        (lambda folder, files: cut(files[1], 10), "model-00002.*was cut short"),
        (
            lambda folder, files: edit_json(
                folder / "model.safetensors.index.json", weight_map={"a": "../x.safetensors"}
            ),
            "plain file name",
        ),
        (lambda folder, files: edit_json(folder / "model.safetensors.index.json", weight_map=[]), "weight_map"),
        (
            lambda folder, files: edit_json(folder / "model.safetensors.index.json", weight_map={"a": files[0].name}),
            "the index says that a is in this file",
        ),
    ],
)
def test_damaged_shards_are_named(tmp_path, change, said):
    folder = write_checkpoint(tmp_path, shard_bytes=50_000)
    change(folder, sorted(folder.glob("model-*.safetensors")))
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "should take 8 bytes, got 4"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "damaged header entry"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "side by side"),
        ({"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}, "dtype 'Q4'"),
        ({"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "damaged header entry"),
        ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "damaged header entry"),
        ({"dtype": "F32"}, "damaged header entry"),
        (3, "damaged header entry"),
    ],
)
def test_hostile_headers(tmp_path, entry, said):
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match=said):
        Shards.open_file(path)


@given(st.data())
def test_a_header_with_flipped_bytes_gives_tensors_or_our_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flipped") / "x.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        shards = Shards.open_file(path)
        assert sum(shards.tensor(name).nbytes for name in shards.entries) == 32


def test_a_file_that_shrinks_after_opening(folder):
    checkpoint = Checkpoint.open(folder)
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(CheckpointError, match="cut short"):
        checkpoint.tensor("lm_head.weight")


def test_unexpected_tensors_are_named_in_one_warning(folder):
    rewrite(folder / "model.safetensors", lambda t: t.update({"adapter.a": torch.ones(1), "adapter.b": torch.ones(1)}))
    with pytest.warns(CompatibilityWarning) as caught:
        Checkpoint.open(folder)
    assert len(caught) == 1
    assert "ignored 2 tensors" in str(caught[0].message)


def test_old_rotary_tables_are_no_surprise(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder / "model.safetensors", lambda tensors: tensors.update({name: torch.ones(4)}))
    Checkpoint.open(folder)


def test_fingerprint_tells_trainings_apart_and_places_not(tmp_path):
    def print_of(name: str, seed: int) -> str:
        return Checkpoint.open(write_checkpoint(tmp_path / name / "same", seed=seed)).fingerprint()

    assert print_of("a", 1) == print_of("b", 1) != print_of("c", 2)


@pytest.mark.parametrize(
    ("source", "name", "size"),
    [
        ("Alpha-VLLM/Lumina-mGPT-7B-768", "Lumina-mGPT-7B-768", 768),
        ("Alpha-VLLM/lumina-mgpt-7b-768-omni", "Lumina-mGPT-7B-768-Omni", 768),
        ("cache/models--Alpha-VLLM--Lumina-mGPT-7B-1024/snapshots/0a1b", "Lumina-mGPT-7B-1024", 1024),
        ("somewhere/my-fine-tune", "my-fine-tune", None),
    ],
)
def test_defaults_by_name(tmp_path, source, name, size):
    found = Defaults.find(tmp_path, source)
    assert (found.name, found.target_size) == (name, size)
    assert (found.guidance, found.top_k, found.text_top_k, found.temperature) == (4.0, 2000, 10, 1.0)


def test_defaults_from_the_checkpoint(folder):
    edit_json(folder / "mgpt.json", name="mini", guidance=2, sizes=[[128, 96], [128, 128]])
    found = Checkpoint.open(folder).defaults
    assert (found.name, found.guidance, found.target_size) == ("mini", 2, 128)
    assert found.sizes == ((128, 96), (128, 128))


def test_a_known_but_unsupported_checkpoint_is_refused_before_it_is_fetched():
    with pytest.raises(CheckpointError, match="can't be exported"):
        Checkpoint.open("Alpha-VLLM/Lumina-mGPT-7B-768-bnb-int4")


def test_offline_the_wanted_files_are_named(monkeypatch, tmp_path):
    def offline(repository: str, **_: Any) -> str:
        msg = "no route\nmore"
        raise ConnectionError(msg)

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"no route\).*hf download .*tokenizer\.json"):
        Checkpoint.open("Alpha-VLLM/Lumina-mGPT-7B-768")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    assert hub.fetch("owner/name") == tmp_path


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "./x", Path("a/b")])
def test_neither_folder_nor_repository(source):
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(source)


def test_a_file_is_no_folder(folder):
    with pytest.raises(CheckpointError, match=r"holds config\.json"):
        Checkpoint.open(folder / "config.json")
