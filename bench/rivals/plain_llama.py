"""A plain LLaMA out of a checkpoint: the same layers without the q/k-norms, the image codes as its whole vocabulary.

For runtimes that know no Chameleon. The bytes of a step are the same: those norms are thousandths.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mgpt_edge.export.checkpoint import Checkpoint

LENGTH = 4096  # tokens that it says it can hold


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by the names that transformers' LLaMA has for them."""
    low, high = checkpoint.vocabulary.code_range
    for name in checkpoint.names():
        if name in {"model.embed_tokens.weight", "lm_head.weight"}:
            yield name, checkpoint.tensor(name)[low:high].clone()
        elif "q_norm" not in name and "k_norm" not in name:
            yield name, checkpoint.tensor(name)


def write_llama(checkpoint: Checkpoint, folder: Path) -> None:
    """A Hugging Face folder, with a tokenizer that tools find and nobody asks."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_config(checkpoint)))
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    save_file(dict(tensors(checkpoint)), folder / "model.safetensors", {"format": "pt"})


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": checkpoint.vocabulary.codes,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def write_gguf(checkpoint: Checkpoint, path: Path, kind: str) -> None:
    """A file for llama.cpp: every matrix in `kind`, one of GGML's types, the norms in float32; no tokenizer."""
    import gguf

    config, matrix = checkpoint.config, gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA], use_temp_file=True)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(checkpoint.vocabulary.codes)
    writer.add_context_length(LENGTH)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_layers)
    for name, tensor in tensors(checkpoint):
        held = matrix if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(tensor.to(torch.float32).numpy(), held)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
