"""Weights as they are, in floats of 32 or 16 bits."""

from __future__ import annotations

from mgpt_edge.export.quantise.precision import Precision

FP32 = Precision(name="fp32", order=0, bits=32)
FP16 = Precision(name="fp16", order=1, bits=16)
