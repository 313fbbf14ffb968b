"""Records that the modules of a room hold, found by looking there: a new one needs no line anywhere else."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")


def catalogue(room: ModuleType, kind: type[T]) -> dict[str, T]:
    """Returns the records of a kind that modules of a room hold, by `name`, sorted by `order` where they have one.

    Args:
        room: a package; the modules of its packages are looked at, too.
        kind: has an attribute `name`.

    Raises:
        ValueError: two records have one name.
    """
    found: dict[str, T] = {}
    for module in walk_packages(room.__path__, f"{room.__name__}."):
        for record in vars(import_module(module.name)).values():
            if isinstance(record, kind) and found.setdefault(record.name, record) is not record:  # type: ignore[attr-defined]
                msg = f"{room.__name__} has two records named {record.name!r}"  # type: ignore[attr-defined]
                raise ValueError(msg)
    return dict(sorted(found.items(), key=lambda item: getattr(item[1], "order", 0)))
