"""mgpt-edge: Lumina-mGPT, compiled, on edge machines.

Example:
    >>> import mgpt_edge
    >>> model = mgpt_edge.load()
    >>> image = model.generate("a red sphere on a gray floor", seed=7)
    >>> mgpt_edge.save(image, "sphere.png")
"""

from __future__ import annotations

from importlib.metadata import version

from mgpt_edge.runtime.answer import Answer, Event, Picture, Preview, Text
from mgpt_edge.runtime.bundle import Bundle, default_bundle
from mgpt_edge.runtime.chat import Chat
from mgpt_edge.runtime.errors import (
    BundleError,
    CheckpointError,
    CompatibilityWarning,
    IncompatibleEngine,
    IncompleteAnswer,
    InvalidRequest,
    MgptError,
    NumericalError,
    OutOfMemory,
)
from mgpt_edge.runtime.layout import ImageLayout, buckets
from mgpt_edge.runtime.loop import End, FinishedRow
from mgpt_edge.runtime.metadata import save
from mgpt_edge.runtime.model import Model, load
from mgpt_edge.runtime.request import Request
from mgpt_edge.runtime.vocabulary import Vocabulary

__version__ = version("mgpt-edge")

__all__ = [
    "Answer",
    "Bundle",
    "BundleError",
    "Chat",
    "CheckpointError",
    "CompatibilityWarning",
    "End",
    "Event",
    "FinishedRow",
    "ImageLayout",
    "IncompatibleEngine",
    "IncompleteAnswer",
    "InvalidRequest",
    "MgptError",
    "Model",
    "NumericalError",
    "OutOfMemory",
    "Picture",
    "Preview",
    "Request",
    "Text",
    "Vocabulary",
    "__version__",
    "buckets",
    "default_bundle",
    "load",
    "save",
]
