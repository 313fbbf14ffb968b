"""Pictures that an engine draws by itself, and the same code by code."""

from __future__ import annotations

from mgpt_edge.runtime.decoding.steps import FinishedRow
from mgpt_edge.runtime.results.events import Picture


def drawn(model, cuda, settings):
    """Tokens and rows of a picture, and how often the host waited."""
    before = cuda.waits
    events = list(model.stream("a red cube", **settings))
    (picture,) = (event for event in events if isinstance(event, Picture))
    return picture.tokens, [event for event in events if isinstance(event, FinishedRow)], cuda.waits - before


def without_drawer(rows):
    """Rows whose codes go through the host."""
    rows.__class__ = type("Through", (type(rows),), {"drawer": None})
    return rows
