"""Tiny checkpoints of the family's kinds, complete on disk, for any test that needs one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mgpt_edge.bench.models.random_checkpoint import SHAPES
from mgpt_edge.bench.models.random_checkpoint import write_checkpoint as write
from mgpt_edge.bench.models.random_tokenizer import QWEN_SPLIT, family_tokenizer, second_names
from mgpt_edge.export.tokenizer import read_vocabulary
from mgpt_edge.runtime.family.prompt import SEPARATOR
from mgpt_edge.runtime.family.tasks import tasks

if TYPE_CHECKING:
    from pathlib import Path

LIKE_7B: dict[str, Any] = {}
LIKE_34B: dict[str, Any] = {
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 16,
    "hidden_size": 128,
    "model_parallel_size": 4,
    "swin_norm": True,
}


def tiny_tokenizer(codes: int = 64) -> str:
    """A tokenizer.json with the family's special names, all 256 bytes and a few words."""
    return family_tokenizer(codes)


def write_checkpoint(
    folder: Path,
    config_overrides: dict[str, Any] | None = None,
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    vq: bool = True,
    shard_bytes: int = 1 << 30,
) -> Path:
    """Writes a tiny random checkpoint: 64 codes, 2 layers 64 wide, and a VQ model 16 channels wide.

    Args:
        folder: made if it is not there.
        config_overrides: fields of `DecoderConfig`; `LIKE_7B` and `LIKE_34B` are the family's two kinds.
        seed: of the weights.
        dtype: of the decoder's weights.
        vq: whether to write the VQ files too.
        shard_bytes: largest file of decoder weights; a small number gives several shards and an index.
    """
    tiny = SHAPES["tiny"]
    shape = replace(tiny, decoder=replace(tiny.decoder, **(config_overrides or {})))
    write(folder, shape, seed=seed, dtype=dtype, vq=vq, shard_bytes=shard_bytes)
    return folder


def trained_tokenizer(codes: int, *, separator: bool = False) -> str:
    """A tokenizer.json made as Lumina-mGPT 2.0's was: Qwen's kind of BPE, trained, then the family's names added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{task.template}a dog. A cat.{SEPARATOR}" for task in tasks().values()], trainer)
    tokenizer.add_special_tokens([*second_names(codes, grids=17), *((SEPARATOR,) if separator else ())])
    return tokenizer.to_str()


def write_second(folder: Path, *, separator: bool = False) -> Path:
    """A tiny random checkpoint of Lumina-mGPT 2.0's kind, with a trained tokenizer."""
    shape = SHAPES["2.0-tiny"]
    write(folder, shape, seed=2, dtype=torch.float32)
    tokenizer = trained_tokenizer(shape.vq.codes, separator=separator)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    return folder


def write_talker(folder: Path) -> Path:
    """A tiny random checkpoint whose answers hold text, small pictures, and an end.

    One dimension of every embedding is a constant, so that its column of the head says how likely each id is
    everywhere, as a bias would.
    """
    write_checkpoint(folder, seed=3)
    vocabulary = read_vocabulary((folder / "tokenizer.json").read_text(encoding="utf-8"))
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][:, 0] = 4.0
    likely = torch.full((len(weights["lm_head.weight"]),), -4.0)
    likely[vocabulary.first_grid + vocabulary.grids : vocabulary.size] = 0.0  # text
    likely[vocabulary.grid(0) : vocabulary.grid(0) + vocabulary.grids] = -20.0
    likely[[vocabulary.grid(1), vocabulary.grid(2)]] = 0.0
    likely[[vocabulary.begin_image, vocabulary.separator]] = 0.9
    weights["lm_head.weight"][vocabulary.end_image :] *= 0.4
    weights["lm_head.weight"][:, 0] = likely
    save_file(weights, path, metadata={"format": "pt"})
    return folder
