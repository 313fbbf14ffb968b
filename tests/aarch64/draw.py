"""Draws pictures with a bundle and prints their tokens as JSON: python draw.py BUNDLE COUNT."""

from __future__ import annotations

import json
import sys

import mgpt_edge
from mgpt_edge.runtime import _native
from mgpt_edge.runtime.results.events import Picture

PROMPT = "a red sphere on a gray floor"

model = mgpt_edge.load(sys.argv[1], threads=1)
pictures = [
    next(event for event in model.stream(PROMPT, seed=seed, size=(128, 128)) if isinstance(event, Picture))
    for seed in range(int(sys.argv[2]))
]
pixels = [picture.image.tobytes().hex() for picture in pictures]
print(json.dumps({"kernels": _native.instruction_sets()[0], "tokens": [p.tokens for p in pictures], "pixels": pixels}))
