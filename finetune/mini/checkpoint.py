"""Writing a trained model in the family's Hugging Face layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from mgpt_edge.finetune.files import replace_atomically, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import Tokenizer

    from mgpt_edge.export.config import DecoderConfig
    from mgpt_edge.export.vqgan import VQConfig
    from mgpt_edge.finetune.mini.draw import Sampling


@dataclass(frozen=True, slots=True)
class Defaults:
    """What `mgpt.json` says beside the weights."""

    name: str
    target_size: int
    sampling: Sampling
    sizes: tuple[tuple[int, int], ...]
    tasks: Mapping[str, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "target_size": self.target_size,
            "guidance": self.sampling.guidance,
            "top_k": self.sampling.top_k,
            "temperature": self.sampling.temperature,
            "sizes": [list(size) for size in self.sizes],
            "tasks": {task: dict(settings) for task, settings in self.tasks.items()},
        }


def write_decoder(folder: Path, config: DecoderConfig, weights: Mapping[str, Tensor], positions: int) -> None:
    """`config.json` and `model.safetensors` in bfloat16."""
    document = {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": config.dropout,
        "eos_token_id": 2,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "mask_image_logits": False,
        "max_position_embeddings": positions,
        "mlp_bias": False,
        "model_parallel_size": config.model_parallel_size,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "swin_norm": config.swin_norm,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "bfloat16",
        "vocab_size": config.vocab_size,
    }
    write_json(folder / "config.json", document)
    _write_tensors(folder / "model.safetensors", {name: weights[name] for name in config.shapes()}, torch.bfloat16)


def write_vq(folder: Path, config: VQConfig, weights: Mapping[str, Tensor]) -> None:
    """`vqgan.yaml` and `vqgan.safetensors` in float16."""
    text = yaml.safe_dump(config.to_yaml(), sort_keys=False)
    replace_atomically(folder / "vqgan.yaml", lambda draft: draft.write_text(text))
    _write_tensors(folder / "vqgan.safetensors", weights, torch.float16)


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """`tokenizer.json`."""
    replace_atomically(folder / "tokenizer.json", lambda draft: tokenizer.save(str(draft)))


def _write_tensors(path: Path, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    stored = {name: value.detach().to(dtype).contiguous() for name, value in weights.items()}
    replace_atomically(path, lambda draft: save_file(stored, draft, metadata={"format": "pt"}))
