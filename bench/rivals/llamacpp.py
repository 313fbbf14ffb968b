"""A guided code by llama.cpp: a plain LLaMA written as GGUF, both rows as two sequences of one batch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from mgpt_edge.bench.measuring.sides import GUIDANCE, ROOM, TOP_K
from mgpt_edge.bench.rivals.plain_llama import write_gguf
from mgpt_edge.runtime.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mgpt_edge.bench.measuring.sides import Case, Step

CHUNK = 64


@llama_cpp.llama_log_callback
def _quiet(*_: object) -> None:
    """Takes what llama.cpp would print."""


def step(case: Case, kind: str) -> Step:
    """`kind` is one of GGML's types."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
    path = case.folder / f"{kind}.gguf"
    write_gguf(case.checkpoint, path, kind)
    context, codes = case.context, case.checkpoint.vocabulary.codes
    rows = _Rows(path, context + ROOM, case.threads)
    for start in range(0, context, CHUNK):
        rows.forward(case.codes[start : start + CHUNK].tolist(), start)
    sampler = Sampler(GUIDANCE, TOP_K, 1.0, 0)

    def run() -> None:
        rows.forward([0], context)
        sampler(rows.logits(0, codes), rows.logits(1, codes), 0, 0, codes, context)
        rows.forget(context)

    return run


class _Rows:
    """Two sequences of the same tokens; what they hold is freed with the process."""

    def __init__(self, path: Path, length: int, threads: int) -> None:
        self._model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = 2 * length, 2, 2 * CHUNK
        settings.n_threads = settings.n_threads_batch = threads
        self._context = self._model and llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            msg = f"llama.cpp can't load {path.name}"
            raise RuntimeError(msg)
        self._batch = llama_cpp.llama_batch_init(2 * CHUNK, 0, 1)

    def forward(self, tokens: Sequence[int], start: int) -> None:
        """Feeds both, and asks for the logits of each one's last token."""
        batch, width = self._batch, len(tokens)
        batch.n_tokens = 2 * width
        for index in range(2 * width):
            row, place = divmod(index, width)
            batch.token[index], batch.pos[index] = tokens[place], start + place
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = place == width - 1
        if error := llama_cpp.llama_decode(self._context, batch):
            msg = f"llama_decode says {error}"
            raise RuntimeError(msg)

    def logits(self, row: int, codes: int) -> NDArray[np.float32]:
        """Of a row of a pass of one token."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, row), (codes,))

    def forget(self, length: int) -> None:
        """Keeps the first tokens of both."""
        memory = llama_cpp.llama_get_memory(self._context)
        for row in range(2):
            llama_cpp.llama_memory_seq_rm(memory, row, length, -1)
