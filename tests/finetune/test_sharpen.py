"""What stands in for codes while the decoder is trained on."""

from __future__ import annotations

import numpy as np
from scipy import stats

from mgpt_edge.finetune.sharpen import slipped

CODES, SIMILAR = 100, 20


def test_a_share_of_the_codes_slips_to_neighbors_and_mostly_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(CODES, size=(2, 60, 60)).astype(np.int16)
    offsets = np.arange(1, SIMILAR + 1)
    neighbors = (np.arange(CODES)[:, None] + offsets) % CODES
    found = slipped(codes, neighbors, np.array([0.0, 0.4]).reshape(2, 1, 1), rng)
    assert (found[0] == codes[0]).all()
    moved = (found[1] - codes[1]) % CODES
    assert 0.37 < (moved > 0).mean() < 0.43
    counts = np.bincount(moved[moved > 0], minlength=SIMILAR + 1)[1:]
    assert counts.shape == offsets.shape
    wanted = np.log1p(1 / offsets) / np.log(SIMILAR + 1)
    assert stats.chisquare(counts, wanted * counts.sum()).pvalue > 0.001
