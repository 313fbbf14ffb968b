"""Golden logits: what a bundle must compute, by the PyTorch reference and not by the engine itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mgpt_edge.export.model import Block, causal_attention
from mgpt_edge.export.rounding import embedded, image_head_precision, precision_of, quantised_linear
from mgpt_edge.runtime.golden import Golden

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics

TOKENS = 48
SAMPLED_CODES = 64


@torch.inference_mode()
def golden_logits(checkpoint: Checkpoint, precision: str, engine: str, statistics: Statistics | None = None) -> Golden:
    """Logits of a random picture's beginning, by the plain PyTorch decoder with its linears quantised."""
    vocabulary = checkpoint.vocabulary
    low, high = vocabulary.code_range
    rng = np.random.default_rng(0)
    tokens = [vocabulary.bos, vocabulary.begin_image, *rng.integers(low, high, TOKENS - 2).tolist()]
    ids = np.sort(rng.choice(vocabulary.codes, min(SAMPLED_CODES, vocabulary.codes), replace=False))
    x = hidden_states(checkpoint, [tokens], precision, engine, statistics)[-1:]
    largest = statistics and statistics.largest_of("lm_head.weight")
    head = quantised_linear(
        checkpoint.tensor("lm_head.weight")[low:high],
        precision_of(checkpoint, "lm_head.weight", image_head_precision(precision, engine)),
        engine,
        largest,
    )
    return Golden(tokens=tokens, ids=ids.tolist(), logits=head(x)[0, ids].tolist())


@torch.inference_mode()
def hidden_states(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    precision: str = "fp32",
    engine: str = "cpu",
    statistics: Statistics | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tensor:
    """Normalised hidden states of whole sequences, end to end, float32 [tokens, hidden].

    Layers are read, used and dropped one at a time.
    """
    config = checkpoint.config
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    rows = embedded(checkpoint.tensor("model.embed_tokens.weight")[tokens], precision, engine)
    parts = rows.split(list(map(len, sequences)))
    for layer in range(config.num_layers):
        progress(layer, config.num_layers)
        block = load_block(checkpoint, layer, precision, engine, statistics)
        parts = [block(x[None], causal_attention(config, len(x), x.device))[0] for x in parts]
    progress(config.num_layers, config.num_layers)
    norm = checkpoint.tensor("model.norm.weight").float()
    return nn.functional.rms_norm(torch.cat(parts), norm.shape, norm, config.norm_eps)


def load_block(
    checkpoint: Checkpoint, layer: int, precision: str, engine: str, statistics: Statistics | None = None
) -> Block:
    """One layer of the checkpoint in float32, its linears as `engine` has them in `precision`."""
    prefix = f"model.layers.{layer}."
    groups = checkpoint.norm_groups
    with torch.device("meta"):
        block = Block(checkpoint.config, layer, groups).eval()
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Linear):
            key = f"{prefix}{name}.weight"
            largest = statistics and statistics.largest_of(key)
            kept = precision_of(checkpoint, key, precision)
            block.set_submodule(name, quantised_linear(checkpoint.tensor(key), kept, engine, largest))
        else:
            for key in dict(module.named_parameters(recurse=False)):
                value = checkpoint.tensor(f"{prefix}{name}.{key}").float()
                setattr(module, key, nn.Parameter(value, requires_grad=False))
    return block
