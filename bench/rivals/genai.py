"""A guided code by onnxruntime-genai: a plain LLaMA by its own model builder, both rows as one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime_genai as og

from mgpt_edge.bench.measuring.sides import GUIDANCE, TOP_K
from mgpt_edge.bench.rivals.plain_llama import write_llama
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.bench.measuring.sides import Case, Step

STEPS = 256  # until the rows start anew


def step(case: Case, precision: str) -> Step:
    """`precision` is one of the builder's."""
    config = og.Config(str(_built(case, precision)))
    threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": case.threads}}}}
    config.overlay(json.dumps(threads))
    codes, sampler = case.checkpoint.vocabulary.codes, Sampler(GUIDANCE, TOP_K, 1.0, 0)
    rows = _Rows(og.Model(config), np.stack([case.codes] * 2).astype(np.int32), codes)

    def run() -> None:
        cond, uncond = rows.forward()
        sampler(cond, uncond, 0, 0, codes, case.context)

    return run


def _built(case: Case, precision: str) -> Path:
    """The folder that the builder makes, with its defaults, in a process of its own: it keeps what it read."""
    llama, built = case.folder / "llama", case.folder / f"genai-{precision}"
    if not llama.exists():
        write_llama(case.checkpoint, llama)
    settings = ["-i", llama, "-o", built, "-p", precision, "-e", "cpu", "-c", case.folder / "cache"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return built


class _Rows:
    """Two rows of the same tokens. A batch can be taken back to nothing only, so they grow with each step."""

    def __init__(self, model: og.Model, tokens: NDArray[np.int32], codes: int) -> None:
        self._tokens, self._length = tokens, tokens.shape[1] + STEPS
        settings = og.GeneratorParams(model)
        settings.set_search_options(batch_size=2, max_length=self._length + 1, do_sample=False)
        self._generator = og.Generator(model, settings)
        self._generator.append_tokens(tokens)
        self._first_code = np.full((2, 1, codes), -np.inf, np.float32)
        self._first_code[..., 0] = 0

    def forward(self) -> NDArray[np.float32]:
        """Feeds the first code to both; their logits."""
        generator = self._generator
        if generator.token_count() == self._length:
            generator.rewind_to(0)
            generator.append_tokens(self._tokens)
        generator.set_logits(self._first_code)  # what comes next is its greatest logit, there is no other way to say it
        generator.generate_next_token()
        return generator.get_logits()[:, 0]
