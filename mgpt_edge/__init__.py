"""mgpt-edge: Lumina-mGPT, compiled, on edge machines.

Example:
    >>> import mgpt_edge
    >>> model = mgpt_edge.load()
    >>> image = model.generate("a red sphere on a gray floor", seed=7)
    >>> mgpt_edge.save(image, "sphere.png")
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgpt_edge.runtime.bundle.folder import Bundle, default_bundle
    from mgpt_edge.runtime.chat import Chat
    from mgpt_edge.runtime.decoding.steps import End, FinishedRow
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
    from mgpt_edge.runtime.family.layout import ImageLayout, buckets
    from mgpt_edge.runtime.family.vocabulary import Vocabulary
    from mgpt_edge.runtime.intake.request import Request
    from mgpt_edge.runtime.model import Model, load
    from mgpt_edge.runtime.results.events import Answer, Event, Picture, Preview, Text
    from mgpt_edge.runtime.results.metadata import save

    __version__: str

# What other packages report home by default, unless the user has said something else; each reads this when imported.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")

# Each name is looked up when it is first used: a module of ours can be imported where the rest is not installed.
_HOMES = {
    "bundle.folder": ("Bundle", "default_bundle"),
    "chat": ("Chat",),
    "decoding.steps": ("End", "FinishedRow"),
    "errors": (
        "BundleError",
        "CheckpointError",
        "CompatibilityWarning",
        "IncompatibleEngine",
        "IncompleteAnswer",
        "InvalidRequest",
        "MgptError",
        "NumericalError",
        "OutOfMemory",
    ),
    "family.layout": ("ImageLayout", "buckets"),
    "family.vocabulary": ("Vocabulary",),
    "intake.request": ("Request",),
    "model": ("Model", "load"),
    "results.events": ("Answer", "Event", "Picture", "Preview", "Text"),
    "results.metadata": ("save",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

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


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("mgpt-edge")
    elif name in _HOME:
        value = getattr(import_module(f"mgpt_edge.runtime.{_HOME[name]}"), name)
    else:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
