"""What an option names, among what there is."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


def named(kind: str, name: str, choices: Mapping[str, T], more: str = "") -> T:
    """The choice of this name; `more` is said behind the names of the others.

    Raises:
        InvalidRequest: there is none; names the nearest.
    """
    if name not in choices:
        near = difflib.get_close_matches(name, choices, 1, cutoff=0)[0]
        msg = f"there is no {kind} {name!r}, did you mean {near}? There are {', '.join(choices)}{more}"
        raise InvalidRequest(msg)
    return choices[name]
