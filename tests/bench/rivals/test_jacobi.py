"""The published ways that ours is compared with: they draw from the model's distribution, in fewer passes."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from mgpt_edge.bench.rivals.jacobi import Jacobi
from mgpt_edge.runtime.family.layout import ImageLayout
from mgpt_edge.runtime.family.vocabulary import Vocabulary
from mgpt_edge.runtime.intake.request import Request

VOCABULARY = Vocabulary(
    size=40, bos=0, begin_image=1, end_image=2, end_row=3, separator=4, first_grid=10, grids=5, first_code=20, codes=4
)
LAYOUT = ImageLayout(32, 32, VOCABULARY)  # 2 x 2 codes
TABLE = np.random.default_rng(0).normal(size=(2, 40, 40, 4)).astype(np.float32)
DRAWS = 3000


class Markov:
    """Rows whose logits depend on the last two tokens."""

    def __init__(self):
        self.rows = [[], []]

    def forward(self, feeds, _):
        out = []
        for fed in feeds:
            row = self.rows[fed.sequence]
            row += fed.tokens
            ends = range(len(row) - fed.last, len(row))
            out.append(np.stack([TABLE[fed.sequence, row[end], row[end - 1]] for end in ends]))
        return out

    def rollback(self, row, length):
        del self.rows[row][length:]


def request(seed):
    return Request(
        prompt="x", size=(32, 32), seed=seed, guidance=1.5, top_k=3, text_top_k=1, temperature=0.9, speculate="off"
    )


def exact():
    """Probability of every picture, by the chain rule."""
    jacobi = Jacobi(Markov(), [0], LAYOUT, request(0), 1, coupled=False)
    found = {}
    for codes in product(range(20, 24), repeat=4):
        tokens = [*LAYOUT.grid, *codes[:2], VOCABULARY.end_row, *codes[2:]]
        chance = 1.0
        for position in (3, 4, 6, 7):
            before = tokens[position - 1], tokens[position - 2]
            cond, uncond = TABLE[0][before], TABLE[1][before]
            chance *= jacobi._probabilities(uncond + np.float32(1.5) * (cond - uncond))[tokens[position] - 20]
        found[tuple(tokens)] = chance
    return found


@pytest.mark.parametrize("coupled", [False, True])
def test_pictures_come_as_often_as_the_model_says(coupled):
    expected = {tokens: chance for tokens, chance in exact().items() if chance > 0}
    drawn, passes = Counter(), 0
    for seed in range(DRAWS):
        jacobi = Jacobi(Markov(), [0], LAYOUT, request(seed), 3, coupled)
        drawn[tuple(jacobi.draw())] += 1
        passes += jacobi.passes
    assert set(drawn) <= set(expected)
    common = [tokens for tokens, chance in expected.items() if chance * DRAWS >= 5]
    counts = [drawn[tokens] for tokens in common]
    chances = [expected[tokens] for tokens in common]
    rest, rare = DRAWS - sum(counts), 1 - sum(chances)
    assert chisquare([*counts, rest], DRAWS * np.array([*chances, rare])).pvalue > 1e-3
    assert passes < 4 * DRAWS
