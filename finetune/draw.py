"""Drawing with the training model: many prompts at once, plain PyTorch, for sweeps and sheets of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgpt_edge.runtime.rotary import rotary_tables

if TYPE_CHECKING:
    from mgpt_edge.export.model import Decoder
    from mgpt_edge.runtime.layout import ImageLayout


@dataclass(frozen=True, slots=True)
class Sampling:
    """Guidance on float32 logits, then top-k of the image codes, then temperature."""

    guidance: float
    top_k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.guidance < 0 or self.top_k < 1 or self.temperature <= 0:
            msg = f"guidance from 0, top-k from 1 and a positive temperature expected, got {self}"
            raise ValueError(msg)


@torch.inference_mode()
def draw(model: Decoder, layout: ImageLayout, prompts: list[list[int]], sampling: Sampling, seed: int) -> Tensor:
    """Codes [n, rows, columns], one picture for each prompt (tokens from bos to the separator)."""
    model.eval()
    rows = _Rows(model, layout, prompts)
    generator = torch.Generator().manual_seed(seed)
    low, high = layout.vocabulary.code_range
    codes: list[Tensor] = []
    for index in range(3, len(layout) - 1):
        forced = layout.forced(index)
        if forced is not None:
            rows.feed(torch.full((2 * len(prompts), 1), forced))
            continue
        logits = rows.logits()[:, low:high]
        drawn = _sample(logits[: len(prompts)], logits[len(prompts) :], sampling, generator)
        codes.append(drawn)
        rows.feed((low + drawn).repeat(2).unsqueeze(1))
    return torch.stack(codes, 1).unflatten(1, (layout.rows, layout.columns))


def _sample(conditional: Tensor, unconditional: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    guided = unconditional + sampling.guidance * (conditional - unconditional)
    threshold = guided.topk(min(sampling.top_k, guided.shape[1]), dim=1).values[:, -1:]
    guided = guided.masked_fill(guided < threshold, -torch.inf) / sampling.temperature
    return torch.multinomial(guided.softmax(1), 1, generator=generator).squeeze(1)


class _Rows:
    """The cache of 2n rows: n with their prompts, then n that begin with the picture."""

    def __init__(self, model: Decoder, layout: ImageLayout, prompts: list[list[int]]) -> None:
        self.model = model
        starts = [[*tokens, *layout.grid] for tokens in prompts] + [list(layout.grid)] * len(prompts)
        longest = max(map(len, starts))
        config = model.config
        capacity = longest + len(layout)
        self.tables = tuple(torch.from_numpy(t) for t in rotary_tables(capacity, config.head_dim, config.rope_theta))
        shape = (len(starts), config.num_kv_heads, capacity, config.head_dim)
        self.cache = [torch.zeros(shape) for _ in range(2 * config.num_layers)]
        self.lengths = torch.zeros(len(starts), dtype=torch.int32)
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in starts])
        hidden = self._pass(padded)
        # What was written for the padding lies behind the rows' lengths and is overwritten.
        self.lengths = torch.tensor([len(row) for row in starts], dtype=torch.int32)
        self.hidden = hidden[torch.arange(len(starts)), self.lengths.long() - 1]

    def feed(self, tokens: Tensor) -> None:
        self.hidden = self._pass(tokens)[:, -1]
        self.lengths += tokens.shape[1]

    def logits(self) -> Tensor:
        return self.model.lm_head(self.hidden).float()

    def _pass(self, tokens: Tensor) -> Tensor:
        hidden, *self.cache = self.model(tokens, self.lengths, *self.tables, *self.cache)
        return hidden
