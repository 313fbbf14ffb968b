"""Models that others wrote, with a checkpoint's weights in them: what ours are measured and tested against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import ChameleonConfig, ChameleonModel

if TYPE_CHECKING:
    from mgpt_edge.export.checkpoint import Checkpoint


def chameleon(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> tuple[ChameleonModel, torch.Tensor]:
    """transformers' inner model with a checkpoint's weights, q/k-norms expanded, and the head's weight [ids, hidden].

    Its ForConditionalGeneration would mask every image logit.
    """
    config = checkpoint.config
    model = ChameleonModel(
        ChameleonConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_eps,
            swin_norm=config.swin_norm,
            vocabulary_map={"<image>": 5},
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 32},
        )
    ).eval()
    state = {name.removeprefix("model."): checkpoint.tensor(name) for name in checkpoint.names()}
    head = state.pop("lm_head.weight")
    for layer in range(config.num_layers):
        names = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")
        for name, tensor in zip(names, checkpoint.qk_norm(layer), strict=True):
            state[f"layers.{layer}.self_attn.{name}"] = tensor
    missing = model.load_state_dict(state, strict=False)
    if missing.unexpected_keys or any(not name.startswith("vqmodel") for name in missing.missing_keys):
        msg = f"transformers' Chameleon has other weights than the checkpoint: {missing}"
        raise ValueError(msg)
    return model.to(dtype), head.to(dtype)
