"""Drawing with the training model: many prompts at once, plain PyTorch, for training, sweeps and sheets of samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mgpt_edge.export.model import rotate
from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.export.model import Decoder
    from mgpt_edge.runtime.family.layout import ImageLayout

MANY = 128
"""Rows from which on compiling their attention pays: it takes seconds."""


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
    """Codes [n, rows, columns], one picture for each prompt (tokens from bos to the separator).

    The model computes, and keeps keys and values, in the type and on the device of its weights.
    """
    guided = sampling.guidance != 1
    starts = [[*tokens, *layout.grid] for tokens in prompts] + [list(layout.grid)] * (len(prompts) if guided else 0)
    rows = _Rows(model, starts, len(layout))
    generator = torch.Generator(rows.device).manual_seed(seed)
    low, high = layout.vocabulary.code_range
    codes: list[Tensor] = []
    for index in range(3, len(layout) - 1):
        forced = layout.forced(index)
        if forced is not None:
            rows.feed(torch.full((len(starts),), forced, device=rows.device))
            continue
        logits = rows.logits(low, high)
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + sampling.guidance * (conditional - unconditional)
        drawn = _sample(logits, sampling, generator)
        codes.append(drawn)
        rows.feed((low + drawn).repeat(2 if guided else 1))
    return torch.stack(codes, 1).unflatten(1, (layout.rows, layout.columns)).cpu()


@torch.inference_mode()
def say(model: Decoder, prompts: list[list[int]], separator: int, longest: int = 60) -> list[list[int]]:
    """The likeliest answer in text to each prompt (tokens from bos to the separator), token by token."""
    rows = _Rows(model, prompts, longest)
    answers: list[list[int]] = [[] for _ in prompts]
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(longest):
        drawn = rows.logits().argmax(1)
        said = drawn.cpu()
        ended |= said == separator
        if ended.all():
            break
        for answer, token, over in zip(answers, said.tolist(), ended.tolist(), strict=True):
            if not over:
                answer.append(token)
        rows.feed(drawn)
    return answers


def _sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """The likeliest of `logits / temperature + gumbel` is a draw from their softmax."""
    if sampling.top_k < logits.shape[1]:
        threshold = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    return (logits / sampling.temperature - noise).argmax(1)


class _Rows:
    """Rows that are fed side by side, padded on the left so that all end at one place; room for `more` tokens each.

    Rotary positions are relative: a row may begin anywhere.
    """

    def __init__(self, model: Decoder, starts: list[list[int]], more: int) -> None:
        self.model, config = model.eval(), model.config
        weight = model.lm_head.weight
        self.device, longest = weight.device, max(map(len, starts))
        capacity = longest + more
        tables = rotary_tables(capacity, config.head_dim, config.rope_theta)
        self.cos, self.sin = (torch.from_numpy(table).to(self.device) for table in tables)
        shape = (len(starts), config.num_kv_heads, capacity, config.head_dim)
        self.cache = [torch.empty(2, *shape, dtype=weight.dtype, device=self.device) for _ in range(config.num_layers)]
        self.end = 0
        lengths = torch.tensor([len(row) for row in starts])
        padding = torch.arange(capacity) < (longest - lengths).unsqueeze(1)
        self.visible = ~padding[:, None, None].to(self.device)
        padded = torch.tensor([[0] * (longest - len(row)) + row for row in starts])
        self.hidden = self._pass(padded.to(self.device))

    def feed(self, tokens: Tensor) -> None:
        """One token [rows] more."""
        self.hidden = self._pass(tokens.unsqueeze(1))

    def logits(self, low: int = 0, high: int | None = None) -> Tensor:
        """Float32 logits of the ids from `low` to `high` after what was fed, [rows, ids]."""
        return F.linear(self.hidden, self.model.lm_head.weight[low:high]).float()

    def _pass(self, tokens: Tensor) -> Tensor:
        self.end += tokens.shape[1]
        return self.model.model(tokens, self._attend)[:, -1]

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        width, end = q.shape[1], self.end
        new = slice(end - width, end)
        cache = self.cache[layer]
        cache[0, :, :, new] = rotate(k, self.cos[new], self.sin[new]).transpose(1, 2)
        cache[1, :, :, new] = v.transpose(1, 2)
        keys, values = cache[:, :, :, :end]
        visible = self.visible[..., :end]
        if width > 1:
            # Padding sees itself: a row of no key at all has no softmax.
            place = torch.arange(end, device=self.device)
            visible = (visible & (place <= place[new, None])) | (place == place[new, None])
        q = rotate(q, self.cos[new], self.sin[new]).transpose(1, 2)
        # Of a CPU's kernels for one query a row the plain one, compiled, is three times as fast.
        compiled = width == 1 and self.device.type == "cpu" and len(q) >= MANY and q.shape[1] == keys.shape[1]
        attend = _compiled() if compiled else _attend
        return attend(q, keys, values, visible).transpose(1, 2)


def _attend(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """q [rows, heads, width, D] to keys and values [rows, kv_heads, n, D], visible [rows, 1, width or 1, n]."""
    grouped = q.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, enable_gqa=grouped)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Made when it is first asked for: the compiler alone takes seconds to load."""
    return torch.compile(_attend_last, dynamic=True)


def _attend_last(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """The same of one query a row and as many heads as key heads."""
    scores = (keys * q).sum(-1, dtype=torch.float32) * q.shape[-1] ** -0.5
    shares = scores.masked_fill(~visible[:, :, 0], -torch.inf).softmax(-1)
    return (shares.unsqueeze(-1) * values).sum(2, keepdim=True, dtype=torch.float32).to(q.dtype)
