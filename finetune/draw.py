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


FAITHFUL = Sampling(guidance=1.0, top_k=200, temperature=0.3)
"""For answers that have one right solution."""


@torch.inference_mode()
def draw(model: Decoder, layout: ImageLayout, prompts: list[list[int]], sampling: Sampling, seed: int) -> Tensor:
    """Codes [n, rows, columns], one picture for each prompt (tokens from bos to the separator)."""
    guided = sampling.guidance != 1
    starts = [[*tokens, *layout.grid] for tokens in prompts] + [list(layout.grid)] * (len(prompts) if guided else 0)
    rows = _Rows(model, starts, len(layout))
    generator = torch.Generator().manual_seed(seed)
    low, high = layout.vocabulary.code_range
    codes: list[Tensor] = []
    for index in range(3, len(layout) - 1):
        forced = layout.forced(index)
        if forced is not None:
            rows.feed(torch.full((len(starts), 1), forced))
            continue
        logits = rows.logits()[:, low:high]
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + sampling.guidance * (conditional - unconditional)
        drawn = _sample(logits, sampling, generator)
        codes.append(drawn)
        rows.feed((low + drawn).repeat(2 if guided else 1).unsqueeze(1))
    return torch.stack(codes, 1).unflatten(1, (layout.rows, layout.columns))


@torch.inference_mode()
def say(model: Decoder, prompts: list[list[int]], separator: int, longest: int = 60) -> list[list[int]]:
    """The likeliest answer in text to each prompt (tokens from bos to the separator), token by token."""
    rows = _Rows(model, prompts, longest)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(longest):
        drawn = rows.logits().argmax(1)
        ended |= drawn == separator
        if ended.all():
            break
        for answer, token, over in zip(answers, drawn.tolist(), ended.tolist(), strict=True):
            if not over:
                answer.append(token)
        rows.feed(drawn.unsqueeze(1))
    return answers


def _sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    threshold = logits.topk(min(sampling.top_k, logits.shape[1]), dim=1).values[:, -1:]
    kept = logits.masked_fill(logits < threshold, -torch.inf) / sampling.temperature
    return torch.multinomial(kept.softmax(1), 1, generator=generator).squeeze(1)


class _Rows:
    """The cache of rows of different lengths that are fed side by side, with room for `more` tokens each."""

    def __init__(self, model: Decoder, starts: list[list[int]], more: int) -> None:
        self.model = model.eval()
        longest = max(map(len, starts))
        config = model.config
        capacity = longest + more
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
