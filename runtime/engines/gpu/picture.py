"""A picture's codes drawn where its passes are computed: the host enqueues a row of codes and waits once.

As all that needs a GPU, it ran on none yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mgpt_edge.runtime.engines.gpu.kernels import CURSOR, DRAWN, NOT_A_NUMBER, PICTURE, PICTURES
from mgpt_edge.runtime.engines.gpu.sequences import DeviceSequences
from mgpt_edge.runtime.errors import NumericalError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mgpt_edge.runtime.engines.base import Drawing
    from mgpt_edge.runtime.engines.gpu.device import Graph
    from mgpt_edge.runtime.engines.gpu.kernels import Kernels

ID_BYTES = LOGIT_BYTES = 4


class PictureLoop:
    """Passes of one token a sequence, and behind each a kernel that draws and writes what the next one reads.

    Where TensorRT leaves it to us, pass and kernel become one CUDA graph; TensorRT for RTX makes its own of the pass.

    Args:
        sequences: whose arrays the passes use.
        kernels: ours.
    """

    def __init__(self, sequences: DeviceSequences, kernels: Kernels) -> None:
        gpu, capacity = sequences.gpu, max(sequences.capacities)
        self.kernels, self.gpu = kernels, gpu
        self.forced, self.tokens = gpu.allocate(capacity * ID_BYTES), gpu.allocate(capacity * ID_BYTES)
        self.picture, self.cursor = gpu.allocate(PICTURE.itemsize), gpu.allocate(CURSOR.itemsize)
        self.positions = gpu.allocate(len(sequences.lengths) * ID_BYTES)  # of engines that take them
        self.logits = gpu.allocate(len(sequences.lengths) * sequences.ids["image"] * LOGIT_BYTES)
        # Contexts of its own: what other passes leave in theirs does not touch what is recorded.
        self.decoder, self.head = sequences.decoder(0), sequences.context("head_image", 0)
        self.head.bind({"hidden": sequences.hidden.address, "logits": self.logits.address})
        self._graphs: dict[bool, Graph | None] = {}  # by whether they are guided; None: ran once

    def draw(self, sequences: DeviceSequences, drawing: Drawing) -> list[int]:
        """As `engines.base.Drawer`, in the sequences that this was made for."""
        given, pictures = self._upload(sequences, drawing), self._pictures(sequences, drawing.guided)
        before = sequences.lengths.copy()
        try:
            for _ in range(drawing.until - len(drawing.tokens) + drawing.pending - 1):
                self._step(sequences, pictures, drawing.guided)
                for sequence in drawing.sequences:
                    sequences.lengths[sequence] += 1
            drawn = self._drawn(drawing)
        except BaseException:
            self.gpu.wait()  # copies may still read what goes now
            sequences.lengths[:] = before
            raise
        del given  # not before: copies read it until here
        return drawn

    def _drawn(self, drawing: Drawing) -> list[int]:
        """Waits for a row of codes."""
        drawn, cursor = np.empty(drawing.until - len(drawing.tokens), np.int32), np.empty(1, CURSOR)
        self.gpu.download(self.tokens.address + len(drawing.tokens) * ID_BYTES, drawn)
        self.gpu.download(self.cursor.address, cursor)
        self.gpu.wait()
        self._check(int(cursor["status"][0]), int(cursor["next"][0]))
        return [int(token) for token in drawn]

    def _upload(self, sequences: DeviceSequences, drawing: Drawing) -> list[NDArray[Any]]:
        """The picture as far as it is known, and what the first pass reads."""
        sampler, vocabulary = drawing.sampler, sequences.engine.bundle.manifest.vocabulary
        known = len(drawing.tokens) - drawing.pending + 1  # the last of these tokens is fed first
        picture = np.zeros(1, PICTURE)
        picture["forced"], picture["tokens"] = self.forced.address, self.tokens.address
        picture["size"] = len(drawing.forced)
        picture["offset"] = sequences.lengths[drawing.sequence] - (known - 1)
        picture["low"], picture["high"] = vocabulary.code_range
        picture["top_k"] = min(sampler.top_k, vocabulary.codes)
        picture["guidance"], picture["temperature"] = sampler.guidance, sampler.temperature
        picture["seed"] = sampler.seed
        cursor = np.array([(known, 1, DRAWN)], CURSOR)
        tokens, fed = np.array(drawing.tokens, np.int32), np.zeros(len(sequences.lengths), np.int32)
        fed[list(drawing.sequences)] = tokens[known - 1]
        sequences.upload_lengths(dict.fromkeys(drawing.sequences, 1))
        places = (self.picture, self.cursor, self.forced, self.tokens, sequences.fed)
        given = [picture, cursor, drawing.forced, tokens, fed]
        for array, buffer in zip(given, places, strict=True):
            self.gpu.upload(array, buffer.address)
        return given

    def _pictures(self, sequences: DeviceSequences, guided: bool) -> NDArray[Any]:
        pictures = np.zeros(1, PICTURES)
        pictures["pictures"], pictures["cursors"] = self.picture.address, self.cursor.address
        pictures["fed"], pictures["positions"] = sequences.fed.address, self.positions.address
        pictures["lengths"], pictures["totals"] = sequences.starts, sequences.ends
        pictures["logits"] = self.logits.address
        pictures["first_id"], pictures["columns"] = (
            sequences.engine.bundle.manifest.vocabulary.first_code,
            sequences.ids["image"],
        )
        pictures["width"], pictures["guided"] = 1, guided
        return pictures

    def _step(self, sequences: DeviceSequences, pictures: NDArray[Any], guided: bool) -> None:
        """Recorded when it comes for the second time: what runs first may take memory."""
        if not sequences.engine.captures or guided not in self._graphs:
            self._graphs.setdefault(guided)
            self._enqueue(sequences, pictures)
            return
        graph = self._graphs[guided]
        if graph is None:
            graph = self._graphs[guided] = self.gpu.capture(lambda: self._enqueue(sequences, pictures))
        self.gpu.launch(graph)

    def _enqueue(self, sequences: DeviceSequences, pictures: NDArray[Any]) -> None:
        self.decoder.enqueue(sequences.shapes((1,) * len(sequences.lengths)))
        sequences.place(1)
        self.head.enqueue(sequences.head_shapes(len(sequences.lengths)))
        self.kernels.step(pictures)

    def _check(self, status: int, index: int) -> None:
        if status != DRAWN:
            what = "hold NaN" if status == NOT_A_NUMBER else "are all excluded (-inf): nothing is left to sample"
            msg = f"the logits of the code at index {index} of the picture {what}"
            raise NumericalError(msg)


class DrawingSequences(DeviceSequences):
    """Sequences whose pictures are drawn without the host, where our kernels are built in."""

    loop: PictureLoop | None = None

    @property
    def drawer(self) -> DrawingSequences | None:
        return self if self.engine.kernels is not None else None

    def draw(self, drawing: Drawing) -> list[int]:
        """As `engines.base.Drawer`."""
        assert self.engine.kernels is not None
        with self.engine.lock:
            if self.loop is None:
                self.loop = PictureLoop(self, self.engine.kernels)
            return self.loop.draw(self, drawing)
