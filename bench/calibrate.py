"""How long a pass takes by its number of guesses: what the adaptive window starts from."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from mgpt_edge.runtime.calibration import Calibration, machine
from mgpt_edge.runtime.engines.base import Fed
from mgpt_edge.runtime.window import WIDTHS

if TYPE_CHECKING:
    from mgpt_edge.runtime.model import Model

PROMPT_TOKENS = 32
ROUNDS = 9


def calibrate(model: Model) -> Calibration:
    """Times passes of a guided stream that is half through a picture of the model's own size."""
    layout, bos = model.intake.usual, model.manifest.vocabulary.bos
    code = model.manifest.vocabulary.first_code
    begun = len(layout) // 2
    held = PROMPT_TOKENS + begun, begun
    rows = model.engine.open((held[0] + max(WIDTHS) + 1, held[1] + max(WIDTHS) + 1))
    rows.forward([Fed(0, [bos] * PROMPT_TOKENS + [code] * begun), Fed(1, [code] * begun)], "image")
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for _ in range(ROUNDS + 1):  # widths take turns; the first round warms up
        for width, times in seconds.items():
            tokens = [code] * (1 + width)
            started = time.perf_counter()
            rows.forward([Fed(0, tokens, 1 + width), Fed(1, tokens, 1 + width)], "image")
            times.append(time.perf_counter() - started)
            for row in (0, 1):
                rows.rollback(row, held[row])
    return Calibration(
        bundle=model.bundle.digest,
        threads=model.engine.threads,
        context=held[0],
        seconds={width: statistics.median(times[1:]) for width, times in seconds.items()},
        machine=machine(),
    )
