"""The family's own way to draw, in plain PyTorch: two unbatched passes a token, nothing forced in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.model import Decoder
from mgpt_edge.runtime.rotary import rotary_tables
from mgpt_edge.runtime.sampling_reference import sample

if TYPE_CHECKING:
    import numpy as np

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.runtime.layout import ImageLayout
    from mgpt_edge.runtime.request import Request


def load_decoder(checkpoint: Checkpoint) -> Decoder:
    decoder = Decoder(checkpoint.config, checkpoint.norm_groups).eval()
    decoder.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.names()})
    return decoder


class Row:
    """One batch-1 sequence with a cache of its own, fed a token at a time."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        config = decoder.config
        self.decoder = decoder
        self.tables = [torch.from_numpy(table) for table in rotary_tables(capacity, config.head_dim, config.rope_theta)]
        self.cache = [
            torch.zeros(1, config.num_kv_heads, capacity, config.head_dim) for _ in range(2 * config.num_layers)
        ]
        self.length = 0

    @torch.inference_mode()
    def feed(self, tokens: list[int]) -> np.ndarray:
        """Logits [vocab] after the tokens."""
        lengths = torch.tensor([self.length], dtype=torch.int32)
        hidden, *_ = self.decoder(torch.tensor([tokens]), lengths, *self.tables, *self.cache)
        self.length += len(tokens)
        return self.decoder.lm_head(hidden[0, -1]).numpy()


def draw(decoder: Decoder, prompt: list[int], layout: ImageLayout, request: Request) -> list[int]:
    """Tokens of a picture, by the state machine of the family's logits processors."""
    v = layout.vocabulary
    capacity = len(prompt) + len(layout)
    cond, uncond = Row(decoder, capacity), Row(decoder, capacity)
    tokens = list(layout.grid)
    logits = cond.feed(prompt + tokens), uncond.feed(tokens)
    while True:
        made = len(tokens) - 3
        if (made + 1) % (layout.columns + 1) == 0:
            token = v.end_row
        elif made == layout.rows * (layout.columns + 1):
            return [*tokens, v.end_image]
        else:
            low, high = v.code_range
            token = sample(
                *(row[low:high] for row in logits),
                first_id=low,
                low=low,
                high=high,
                guidance=request.guidance,
                top_k=request.top_k,
                temperature=request.temperature,
                seed=request.seed,
                position=len(prompt) + len(tokens),
            )
        tokens.append(token)
        logits = cond.feed([token]), uncond.feed([token])
