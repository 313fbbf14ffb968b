"""A bundle in memory: its engine, and what stands before and behind it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from mgpt_edge.runtime import machine
from mgpt_edge.runtime.decoding import costs
from mgpt_edge.runtime.decoding.window import Costs, Window
from mgpt_edge.runtime.engines import load_engine
from mgpt_edge.runtime.errors import InvalidRequest
from mgpt_edge.runtime.intake.job import Intake
from mgpt_edge.runtime.results.presenter import Presenter

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.engines.base import Engine
    from mgpt_edge.runtime.intake.request import Request

MOST_THREADS = 256


class Loaded:
    """What conversations and single answers share.

    Args:
        bundle: opened.
        threads: of every pass, 1 to 256; as many as this process may use cores unless given.
        engine: in place of the bundle's own.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, engine: Engine | None = None) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.manifest = manifest
        self.engine = engine or load_engine(bundle, machine.usable_cores() if threads is None else _checked(threads))
        self.tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
        self.intake = Intake(manifest, self.engine, self.tokenizer)
        self.presenter = Presenter(bundle, self.engine, self.tokenizer)
        self.costs = costs.stored(bundle.digest, self.engine.threads)

    def window(self, request: Request, streams: int = 1) -> Window | None:
        """How far the request's pictures are guessed ahead; None draws code by code.

        Several streams fill a pass without guessing.
        """
        if request.speculate == "auto":
            return Window(None, self.costs) if self.manifest.width_invariant and streams == 1 else None
        return None if request.speculate == "off" else Window(int(request.speculate), Costs())


def _checked(threads: int) -> int:
    """A number of threads that somebody asked for."""
    try:
        count = 0 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = 0
    if not 1 <= count <= MOST_THREADS:
        msg = f"threads must be a whole number from 1 to {MOST_THREADS}, got {threads!r}"
        raise InvalidRequest(msg)
    return count
