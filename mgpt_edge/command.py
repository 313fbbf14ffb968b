"""The command `mgpt`, before its modules are read: Ctrl-C meanwhile is no traceback."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from mgpt_edge.cli import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()
