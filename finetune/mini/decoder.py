"""The small transformer: its sizes, its first weights, and its loss on what it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.finetune.conversation import UNLABELLED
from mgpt_edge.finetune.sft import computing, summed_losses

if TYPE_CHECKING:
    from mgpt_edge.export.model import Decoder
    from mgpt_edge.finetune.sft import Corpus


def small_decoder(vocab_size: int, dropout: float = 0.0) -> DecoderConfig:
    """The transformer of the small checkpoint."""
    return DecoderConfig(
        hidden_size=256,
        intermediate_size=688,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        vocab_size=vocab_size,
        norm_eps=1e-5,
        rope_theta=10000.0,
        dropout=dropout,
    )


def initialise(model: Decoder, generator: torch.Generator) -> None:
    """Normal weights of deviation 0.02, smaller at the end of each branch."""
    deep = (2 * model.config.num_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "_norm" not in name:
            last = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(parameter, std=0.02 * (deep if last else 1), generator=generator)


@torch.inference_mode()
def validation_loss(model: Decoder, corpus: Corpus, batches: int = 8) -> float:
    """Mean cross-entropy over a corpus' first batches."""
    model.eval()
    device = model.lm_head.weight.device
    total, labels = 0.0, 0
    for part in (corpus.batch(number) for number in range(batches)):
        with computing(device):
            total += summed_losses(model, part.tokens.to(device), part.labels.to(device))[0].item()
        labels += int((part.labels != UNLABELLED).sum())
    return total / labels
