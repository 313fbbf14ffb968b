"""Weights and the inputs they meet, rescaled against each other so that rounding weights to few bits costs less.

A channel of an input is multiplied by 1/s where it is made and by s where it is read: in float32 nothing changes.
Channels that carry much then have finer steps (activation-aware quantisation, arXiv 2306.00978); or, where inputs are
rounded too and with one step for all channels, the weights take over what is large in them (SmoothQuant, 2211.10438).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from mgpt_edge.export.rewritten import Rewritten
from mgpt_edge.export.rounding import rounded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.config import DecoderConfig
    from mgpt_edge.export.statistics import Statistics

EXPONENTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of a channel's root mean square; the one whose weights are rounded best is taken."""
ROWS = 256
"""Output channels of each linear that the exponents are compared on."""


def equalise(checkpoint: Checkpoint, statistics: Statistics, precision: str, engine: str) -> Rewritten:
    """The checkpoint rescaled for weights as `engine` rounds them in `precision`."""

    def best(name: str, readers: tuple[str, ...]) -> Tensor:
        return _factors(checkpoint, readers, statistics.square[name], lambda w: rounded(w, precision, engine))

    return _rescaled(checkpoint, best)[0]


def smooth(checkpoint: Checkpoint, statistics: Statistics) -> tuple[Rewritten, Statistics]:
    """The checkpoint rescaled so that no channel of an input is much larger than others, and what is measured then."""

    def even(name: str, readers: tuple[str, ...]) -> Tensor:
        weights = torch.stack([checkpoint.tensor(reader).abs().amax(0).float() for reader in readers]).amax(0)
        return _powers_of_two((_positive(statistics.largest[name]) / _positive(weights)).sqrt())

    changed, factors = _rescaled(checkpoint, even)
    largest = {name: value / factors.get(name, 1.0) for name, value in statistics.largest.items()}
    square = {name: value / factors.get(name, 1.0) ** 2 for name, value in statistics.square.items()}
    return changed, replace(statistics, largest=largest, square=square)


def _rescaled(
    checkpoint: Checkpoint, choose: Callable[[str, tuple[str, ...]], Tensor]
) -> tuple[Rewritten, dict[str, Tensor]]:
    """The checkpoint under the factors that are chosen for each input, and they by its name."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    chosen: dict[str, Tensor] = {}
    for name, maker, readers in _inputs(checkpoint.config):
        chosen[name] = factors = choose(name, readers)
        changes |= {reader: _then(changes.get(reader), partial(torch.mul, other=factors)) for reader in readers}
        changes[maker] = _then(changes.get(maker), partial(_divided, divisors=factors))
    return Rewritten.of(checkpoint, changes), chosen


def _then(first: Callable[[Tensor], Tensor] | None, second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return second if first is None else lambda tensor: second(first(tensor))


def _divided(tensor: Tensor, divisors: Tensor) -> Tensor:
    """A matrix with its rows divided, or a norm with its channels."""
    return tensor / (divisors[:, None] if tensor.dim() == 2 else divisors)


def _inputs(config: DecoderConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Each input that can be rescaled: its name, the tensor that makes it, the linears that read it.

    Where norms stand behind the branches, what a branch reads is the residual stream, which nothing may rescale.
    """
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        if not config.swin_norm:
            queries = tuple(f"{attention}{x}_proj.weight" for x in "qkv")
            yield f"{layer}.attention", f"{prefix}input_layernorm.weight", queries
            gates = tuple(f"{mlp}{x}_proj.weight" for x in ("gate", "up"))
            yield f"{layer}.mlp", f"{prefix}post_attention_layernorm.weight", gates
        if config.num_heads == config.num_kv_heads:  # else several heads read one value
            yield f"{layer}.mixed", f"{attention}v_proj.weight", (f"{attention}o_proj.weight",)
        yield f"{layer}.gated", f"{mlp}up_proj.weight", (f"{mlp}down_proj.weight",)
    if not config.tied_embeddings:
        yield "head", "model.norm.weight", ("lm_head.weight",)


def _factors(
    checkpoint: Checkpoint, readers: tuple[str, ...], square: Tensor, round_off: Callable[[Tensor], Tensor]
) -> Tensor:
    """The factors [in] under which the readers' outputs are least wrong, channels taken as independent."""
    samples = []
    for name in readers:
        rows = checkpoint.shape(name)[0]
        step = max(1, rows // ROWS)
        samples.append(checkpoint.tensor(name)[::step][:ROWS].float())
    weight = torch.cat(samples)

    def wrong(factors: Tensor) -> float:
        error = round_off(weight * factors) / factors - weight
        return float((error.square() * square).sum())

    return min(map(_candidate, [square] * len(EXPONENTS), EXPONENTS), key=wrong)


def _candidate(square: Tensor, exponent: float) -> Tensor:
    """Root mean squares to a power."""
    return _powers_of_two(_positive(square.sqrt()).pow(exponent))


def _positive(magnitudes: Tensor) -> Tensor:
    return magnitudes.clamp_min(magnitudes.max() * 1e-4).clamp_min(1e-15)


def _powers_of_two(factors: Tensor) -> Tensor:
    """About 1 in the middle, and powers of two: dividing by them is exact."""
    return torch.exp2(torch.round(torch.log2(factors / factors.log().mean().exp())))
