"""Two stored reports side by side: ratios, and whether the second is worse beyond the spread of both.

mgpt bench compare BEFORE.json AFTER.json
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgpt_edge.bench.page.results import read
from mgpt_edge.runtime.errors import InvalidRequest, MgptError

if TYPE_CHECKING:
    from mgpt_edge.bench.page.figures import Figure
    from mgpt_edge.bench.page.results import Results


NAMED = 5


class Regression(MgptError):
    """Figures got worse by more than both runs scatter."""


def compare(
    before: Annotated[Path, typer.Argument(help="report.json of an earlier run.")],
    after: Annotated[Path, typer.Argument(help="report.json of the run that is judged.")],
    any_machine: Annotated[bool, typer.Option("--any-machine", help="Though they ran on two machines.")] = False,
) -> None:
    """Print after/before of every figure; exit code 1 where one is worse and the spreads do not touch."""
    first, second = read(before), read(after)
    _check(first, second, any_machine=any_machine)
    earlier = {(figure.part, figure.name): figure for figure in first.figures}
    pairs = [(earlier.pop((new.part, new.name), None), new) for new in second.figures]
    common = [(old, new) for old, new in pairs if old is not None]
    if not common:
        msg = f"{before} and {after} have no figure in common"
        raise InvalidRequest(msg)
    print(f"{'after/before':>12}  {'before':>12} {'after':>12}")
    for old, new in common:
        print(_line(old, new))
    lonely = [*earlier.values(), *(new for old, new in pairs if old is None)]
    if lonely:
        print(f"{len(lonely)} figures are in one of the two only: {', '.join(sorted({of.part for of in lonely}))}")
    worse = [f"{new.part}, {new.name}" for old, new in common if new.worse_than(old)]
    if worse:
        more = f"; and {len(worse) - NAMED} more" if len(worse) > NAMED else ""
        named = "; ".join(worse[:NAMED])
        msg = f"{len(worse)} of {len(common)} figures are worse beyond the measured spread: {named}{more}"
        raise Regression(msg)


def _check(first: Results, second: Results, *, any_machine: bool) -> None:
    """Refuses what means nothing side by side."""
    if not any_machine and first.machine != second.machine:
        differ = [key for key in first.machine if first.machine[key] != second.machine.get(key)]
        sides = ", ".join(f"{key} {first.machine[key]} and {second.machine.get(key)}" for key in differ)
        msg = f"the two ran on different machines: {sides}; --any-machine compares them all the same"
        raise InvalidRequest(msg)
    if first.settings["bundle"] != second.settings["bundle"]:
        print(f"two bundles: {first.settings['bundle']} and {second.settings['bundle']}")


def _line(old: Figure, new: Figure) -> str:
    if old.spread is None or new.spread is None:
        verdict = "measured once, not judged"
    else:
        verdict = "WORSE" if new.worse_than(old) else "better" if old.worse_than(new) else ""
    ratio = f"{new.value / old.value:.3f} x" if old.value else "-"
    return f"{ratio:>12}  {old.value:12.4g} {new.value:12.4g} {new.unit:18} {new.part}, {new.name}  {verdict}".rstrip()
