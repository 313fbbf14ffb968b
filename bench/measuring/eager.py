"""What an engine computes, in PyTorch: for engines whose kernels are not on this machine. Slow, and never timed."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn

from mgpt_edge.export.golden import load_block
from mgpt_edge.export.model import Decoder
from mgpt_edge.export.rounding import embedded, image_head_precision, quantised_linear
from mgpt_edge.export.vqgan import VQGAN
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.family.rotary import rotary_tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics
    from mgpt_edge.runtime.engines.base import Head, Segment


class EagerEngine:
    """`runtime.engines.base.Engine` with a checkpoint's linears as `engine` has them in `precision`.

    Only the linears are those of the engine: keys, values and sums are float32.
    """

    most_streams = 32
    most_tokens = (1 << 31) - 1

    def __init__(
        self, checkpoint: Checkpoint, precision: str, engine: str, statistics: Statistics | None = None
    ) -> None:
        self.threads = torch.get_num_threads()
        self.config = checkpoint.config
        self.decoder = _decoder(checkpoint, precision, engine, statistics)
        head, (low, high) = checkpoint.tensor("lm_head.weight"), checkpoint.vocabulary.code_range
        largest = statistics and statistics.largest_of("lm_head.weight")
        self.heads: dict[Head, nn.Module] = {
            "image": quantised_linear(head[low:high], image_head_precision(precision, engine), engine, largest),
            "text": quantised_linear(head, precision, engine, largest),
        }
        self.vq = VQGAN(checkpoint.vq.config).eval()
        self.vq.load_state_dict({name: checkpoint.vq.load(name).float() for name in checkpoint.vq.shapes})

    def free_bytes(self) -> int:
        return machine.available_bytes()

    def prepare(self, *, draws: bool, reads: bool) -> None:
        """PyTorch holds all of it."""

    def open(self, capacities: tuple[int, int], streams: int = 1) -> EagerSequences:
        return EagerSequences(self, max(capacities), streams)

    @torch.inference_mode()
    def decode_pixels(self, codes: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.vq.decode_pixels(torch.from_numpy(codes)[None])[0].numpy()

    @torch.inference_mode()
    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self.vq.encode_pixels(torch.from_numpy(pixels)[None])[0].numpy()


class EagerSequences:
    """`runtime.engines.base.Sequences`. All go through every pass; what one computes beyond its tokens is written over.

    Args:
        engine: whose decoder it is.
        capacity: tokens a sequence; a pass may be as wide, wherever a sequence that idles stands.
        streams: that share passes.
    """

    drawer = None

    def __init__(self, engine: EagerEngine, capacity: int, streams: int) -> None:
        config = engine.config
        self.engine, self.streams = engine, streams
        self.lengths = [0] * (2 * streams)
        tables = rotary_tables(2 * capacity, config.head_dim, config.rope_theta)
        self.tables = [torch.from_numpy(table) for table in tables]
        shape = (len(self.lengths), config.num_kv_heads, 2 * capacity, config.head_dim)
        self.cache = [torch.zeros(shape) for _ in range(2 * config.num_layers)]

    def length(self, sequence: int) -> int:
        return self.lengths[sequence]

    @torch.inference_mode()
    def forward(self, feeds: Sequence[Segment], head: Head) -> list[NDArray[np.float32]]:
        tokens = torch.zeros(len(self.lengths), max(len(fed.tokens) for fed in feeds), dtype=torch.int64)
        for fed in feeds:
            tokens[fed.sequence, : len(fed.tokens)] = torch.tensor(fed.tokens)
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        hidden, *self.cache = self.engine.decoder(tokens, lengths, *self.tables, *self.cache)
        wanted = [hidden[fed.sequence, len(fed.tokens) - fed.last : len(fed.tokens)] for fed in feeds]
        logits = self.engine.heads[head](torch.cat(wanted)).numpy()
        for fed in feeds:
            self.lengths[fed.sequence] += len(fed.tokens)
        ends = accumulate(fed.last for fed in feeds)
        return [logits[end - fed.last : end] for fed, end in zip(feeds, ends, strict=True)]

    def rollback(self, sequence: int, length: int) -> None:
        self.lengths[sequence] = length

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        for block in self.cache:
            block[target, :, :length] = block[source, :, :length]
        self.lengths[target] = length


def _decoder(checkpoint: Checkpoint, precision: str, engine: str, statistics: Statistics | None) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(checkpoint.config, checkpoint.norm_groups).eval()

    def kept(value: Tensor) -> nn.Parameter:
        return nn.Parameter(value, requires_grad=False)

    table = checkpoint.tensor("model.embed_tokens.weight")
    decoder.model.embed_tokens.weight = kept(embedded(table, precision, engine))
    decoder.model.norm.weight = kept(checkpoint.tensor("model.norm.weight").float())
    for layer in range(checkpoint.config.num_layers):
        decoder.model.layers[layer] = load_block(checkpoint, layer, precision, engine, statistics)
    return decoder
