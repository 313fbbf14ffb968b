"""`mgpt bench`: each measurement is a module of the room `bench/`, loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module

import typer

from mgpt_edge.runtime.errors import InvalidRequest

VERBS = {
    "report": "everything in one folder: a page to publish, a Markdown table, JSON",
    "compare": "two stored reports: ratios, and whether the second is worse than both scatter",
    "publish": "a stored report into docs/benchmarks.md and the README's tables",
    "passes": "what guessing ahead costs here, kept for the adaptive window",
    "latency": "loading, the first row, a code, a picture, memory; with guesses ahead; four at a time",
    "speculation": "passes and time with guesses ahead, beside published ways",
    "peers": "one guided token: our engines, the family's own loop, llama.cpp and others, the least that memory allows",
    "sampler": "one draw: ours, NumPy and PyTorch",
    "chat": "what a further turn costs",
    "ceiling": "what this machine allows: memory, matrix products, the least time of a code",
    "simulate": "an estimate for a machine that is not at hand",
    "precisions": "precisions and engines: how far from float32, what they draw, size and speed",
    "quality": "how often the small model does what it is asked",
}
RENAMED = {"calibrate": "passes"}
"""Old names, which work for one release more."""
SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def bench(context: typer.Context) -> int | None:
    """Measure this machine; `mgpt bench` lists what, `mgpt bench WHAT --help` says how."""
    verb, *arguments = context.args or ["--help"]
    if verb == "--help":
        typer.echo("Usage: mgpt bench WHAT [OPTIONS]\n")
        for name, what in VERBS.items():
            typer.echo(f"  {name:12} {what}")
        return None
    if verb in RENAMED:
        typer.echo(f"mgpt: mgpt bench {verb} is called mgpt bench {RENAMED[verb]} now", err=True)
        verb = RENAMED[verb]
    if verb not in VERBS:
        msg = f"there is no bench {verb!r}; there are {', '.join(VERBS)}"
        raise InvalidRequest(msg)
    try:
        module = import_module(f"mgpt_edge.bench.{verb}")
    except ImportError as error:
        msg = f"mgpt bench {verb} needs {error.name}; install what it measures: pip install 'mgpt-edge[cpu,bench]'"
        raise InvalidRequest(msg) from error
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(help=module.__doc__)(getattr(module, verb))
    return app(arguments, prog_name=f"mgpt bench {verb}", standalone_mode=False)
