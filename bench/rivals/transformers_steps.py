"""A guided code by transformers' Chameleon: as the family runs it, and with both rows in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache, StaticCache

from mgpt_edge.bench.measuring.sides import GUIDANCE, ROOM, TOP_K
from mgpt_edge.bench.rivals.reference import chameleon

if TYPE_CHECKING:
    from transformers import Cache, ChameleonModel

    from mgpt_edge.bench.measuring.sides import Case, Step


def step(case: Case, setting: str) -> Step:
    """`growing` or `static`, and the name of a dtype."""
    torch.set_num_threads(case.threads)
    cache, dtype = setting.split()
    model, head = _model(case, dtype)
    with torch.inference_mode():
        return {"growing": _growing, "static": _static}[cache](case, model, head)


@lru_cache(maxsize=2)  # two sides share the weights of a precision
def _model(case: Case, dtype: str) -> tuple[ChameleonModel, torch.Tensor]:
    return chameleon(case.checkpoint, getattr(torch, dtype))


def _growing(case: Case, model: ChameleonModel, head: torch.Tensor) -> Step:
    """As the family's own loop does it: a pass a row, codes picked out of all the ids."""
    low, high = case.checkpoint.vocabulary.code_range
    token = torch.tensor([[low]])
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for cache in caches:
        _fill(cache, model, case.context, rows=1)

    @torch.inference_mode()
    def run() -> None:
        passes = (model(input_ids=token, past_key_values=cache, use_cache=True) for cache in caches)
        cond, uncond = ((of.last_hidden_state[:, -1] @ head.T).float() for of in passes)
        guided = torch.full_like(cond, -torch.inf)
        guided[:, low:high] = (uncond + GUIDANCE * (cond - uncond))[:, low:high]
        _draw(guided, high - low)
        for cache in caches:
            cache.crop(-1)  # the token of this step

    return run


def _static(case: Case, model: ChameleonModel, head: torch.Tensor) -> Step:
    low, high = case.checkpoint.vocabulary.code_range
    token = torch.tensor([[low], [low]])
    cache = StaticCache(config=model.config, max_cache_len=case.context + ROOM)
    _fill(cache, model, case.context, rows=2)
    head = head[low:high]

    @torch.inference_mode()
    def run() -> None:
        hidden = model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        cond, uncond = (hidden @ head.T).float().split(1)
        _draw(uncond + GUIDANCE * (cond - uncond), high - low)
        for layer in cache.layers:
            layer.cumulative_length.fill_(case.context)  # the next step writes over this one's token

    return run


def _fill(cache: Cache, model: ChameleonModel, context: int, rows: int) -> None:
    """Random keys and values: how long a step takes does not depend on them, and bfloat16 passes over hundreds of
    tokens take minutes on CPUs without such products.
    """
    config = model.config
    shape = rows, config.num_key_value_heads, context, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        keys, values = torch.randn(2, *shape).to(model.dtype)
        cache.update(keys, values, layer)


def _draw(guided: torch.Tensor, codes: int) -> None:
    kept = guided.masked_fill(guided < guided.topk(min(TOP_K, codes)).values[:, -1:], -torch.inf)
    torch.multinomial(kept.softmax(1), 1)
