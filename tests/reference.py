"""The family's own way to draw, in plain PyTorch: two unbatched passes a token, nothing forced in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.model import Decoder
from mgpt_edge.runtime.family.rotary import rotary_tables
from mgpt_edge.runtime.sampling.specification import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.runtime.family.layout import ImageLayout
    from mgpt_edge.runtime.family.vocabulary import Vocabulary
    from mgpt_edge.runtime.intake.request import Request


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


@torch.inference_mode()
def answer(
    decoder: Decoder,
    vocabulary: Vocabulary,
    history: list[int],
    request: Request,
    *,
    size: tuple[int, int] | None = None,
    picture: bool = False,
    limit: int = 10_000,
    stride: int = 16,
    given: Sequence[int] = (),
) -> list[int]:
    """Tokens of an answer of any kind, by counting over the whole sequence at each step; no cache at all.

    Args:
        decoder: of the checkpoint.
        vocabulary: its ids.
        history: all tokens before the answer.
        request: how to sample.
        size: (width, height) of every picture, where the caller asked for one.
        picture: whether the answer is a picture and nothing else.
        limit: most tokens.
        stride: pixels that a code covers on each side.
        given: tokens that the answer begins with.
    """
    v, made, scale = vocabulary, list(given), 32 // stride

    def logits(tokens: list[int]) -> np.ndarray:
        return decoder.logits(torch.tensor([tokens]))[0, -1].numpy()

    def draw_from(low: int, high: int, top_k: int, *, start: int | None = None) -> int:
        guided = start is not None and request.guidance != 1
        return sample(
            logits(sequence)[low:high],
            logits(sequence[start:])[low:high] if guided else None,
            first_id=low,
            low=low,
            high=high,
            guidance=request.guidance if guided else 1.0,
            top_k=top_k,
            temperature=request.temperature,
            seed=request.seed,
            position=len(sequence),
        )

    while len(made) < limit:
        sequence = [*history, *made]
        if sequence.count(v.begin_image) == sequence.count(v.end_image):
            if picture and made:
                break
            made.append(v.begin_image if picture else draw_from(0, v.size, request.text_top_k))
            if made[-1] == v.separator:
                break
            continue
        start = len(sequence) - 1 - sequence[::-1].index(v.begin_image)
        height, width, *codes = [*sequence[start + 1 :], None, None][: max(2, len(sequence) - start - 1)]
        if width is None:
            wanted = None if size is None else v.first_grid + size[1 if height is None else 0] // 32
            grids = v.first_grid + 1, v.first_grid + v.grids
            made.append(wanted or draw_from(*grids, request.top_k))
            continue
        rows, columns = scale * (height - v.first_grid), scale * (width - v.first_grid)
        if len(codes) == rows * (columns + 1):
            made.append(v.end_image)
        elif (len(codes) + 1) % (columns + 1) == 0:
            made.append(v.end_row)
        else:
            made.append(draw_from(v.first_code, v.first_code + v.codes, request.top_k, start=start))
    return made
