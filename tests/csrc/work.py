"""Work to count the instructions of: python work.py sampler|pass|loop TIMES."""

from __future__ import annotations

import sys

import numpy as np

from mgpt_edge.runtime._native import CpuDecoder
from mgpt_edge.runtime.decoding.schedule import decode
from mgpt_edge.runtime.family.grammar import Form
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.rotary import rotary_tables
from mgpt_edge.runtime.family.vocabulary import Vocabulary
from mgpt_edge.runtime.intake.job import Job
from mgpt_edge.runtime.intake.request import Request
from mgpt_edge.runtime.sampling.sampler import Sampler

CODES, WIDTH, LAYERS, FFN, HEADS, CONTEXT = 8192, 256, 2, 512, 4, 256


def sampler(times: int) -> None:
    """Guided draws from 8192 codes, top-k 2000."""
    cond, uncond = np.random.default_rng(0).normal(size=(2, CODES)).astype(np.float32)
    draw = Sampler(3.0, 2000, 1.0, 7)
    for position in range(times):
        draw(cond, uncond, 0, 0, CODES, position)


def one_pass(times: int) -> None:
    """Passes of one token in two rows behind 256 others, two layers 256 wide, logits of 1024 ids; one thread."""
    sizes = {"layers": LAYERS, "hidden_size": WIDTH, "heads": HEADS, "kv_heads": HEADS, "head_dim": WIDTH // HEADS}
    sizes |= {"intermediate_size": FFN, "vocabulary": 1024}
    decoder = CpuDecoder(sizes, 1e-5, False, _weights(), 1)
    decoder.rotate(*rotary_tables(CONTEXT + 1, WIDTH // HEADS, 10000.0))
    cache, out = decoder.cache([CONTEXT + 1] * 2), np.zeros((2, 1024), np.float32)
    context = np.zeros(2 * CONTEXT, np.int64)
    decoder.forward(cache, np.array([[0, CONTEXT, 1], [1, CONTEXT, 1]]), context, 0, 1024, out)
    for _ in range(times):
        decoder.forward(cache, np.array([[0, 1, 1], [1, 1, 1]]), context[:2], 0, 1024, out)
        cache.rollback(0, CONTEXT)
        cache.rollback(1, CONTEXT)


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "embedding": np.zeros((1024, WIDTH), np.uint16),
        "norm": np.ones(WIDTH, np.float32),
    }

    def linear(name: str, out: int, size: int) -> None:
        arrays[name] = rng.integers(0, 256, out * size, np.uint8)
        arrays[f"{name}.scale"] = np.full(out, 1e-3, np.float32)

    linear("head", 1024, WIDTH)
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        for name, out, size in (
            ("qkv", 3 * WIDTH, WIDTH),
            ("out", WIDTH, WIDTH),
            ("gate_up", 2 * FFN, WIDTH),
            ("down", WIDTH, FFN),
        ):
            linear(at + name, out, size)
        for name in ("attention_norm", "mlp_norm", "query_norm", "query_norm.bias", "key_norm", "key_norm.bias"):
            arrays[at + name] = np.ones(WIDTH, np.float32)
    return arrays


class Constant:
    """Rows that answer every pass with the same logits: what is left is the loop's own work."""

    streams = 1
    drawer = None

    def __init__(self) -> None:
        self.lengths = [0, 0]
        self.logits = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)

    def length(self, row: int) -> int:
        return self.lengths[row]

    def forward(self, feeds: list, _: str) -> list[np.ndarray]:
        for fed in feeds:
            self.lengths[fed.sequence] += len(fed.tokens)
        return [self.logits for _ in feeds]

    def rollback(self, row: int, length: int) -> None:
        self.lengths[row] = length


def loop(times: int) -> None:
    """Pictures of 64 codes, sixteen of which there are, without an engine."""
    v = Vocabulary(
        size=50,
        bos=0,
        begin_image=1,
        end_image=2,
        end_row=3,
        separator=4,
        first_grid=10,
        grids=9,
        first_code=20,
        codes=16,
    )
    layout = ImageLayout(128, 128, v)
    form = Form(vocabulary=v, stride=16, limit=len(layout), layout=layout, picture=True)
    for seed in range(times):
        request = Request(prompt="x", size=(128, 128), seed=seed, guidance=2.0, top_k=8, text_top_k=1, temperature=1.0)
        for _ in decode(Constant(), [Job(request, [0, 5, 6, 4], form)]):
            pass


if __name__ == "__main__":
    {"sampler": sampler, "pass": one_pass, "loop": loop}[sys.argv[1]](int(sys.argv[2]))
