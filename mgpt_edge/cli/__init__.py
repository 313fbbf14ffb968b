"""The command `mgpt`: one file a group of verbs, heavy imports inside the verbs."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from importlib import metadata
from typing import Annotated

import typer

from mgpt_edge.cli import (
    batch,
    bench,
    build,
    bundles,
    calibrate,
    doctor,
    finetune,
    generate,
    gptq,
    talk,
    transform,
)
from mgpt_edge.cli.surroundings import Terminated, end_by, lost_output, signals, streams
from mgpt_edge.runtime.errors import CompatibilityWarning, Interrupted, InvalidRequest, MgptError

app = typer.Typer(
    name="mgpt",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compile and run Lumina-mGPT: pictures and words on edge machines.",
    epilog="Exit codes: 0 done, 1 does not fit or failed, 2 invalid request, 3 checkpoint, 4 bundle, "
    "5 no engine for it, 6 out of memory, 7 numerical error, 8 answer broke off, 130 interrupted.",
)
for verb in (
    generate.generate,
    transform.transform,
    talk.ask,
    talk.chat,
    batch.batch,
    calibrate.calibrate,
    gptq.gptq,
    bundles.export,
    build.build,
    bundles.inspect,
    bundles.verify,
    bundles.estimate,
    doctor.doctor,
):
    app.command()(verb)
app.add_typer(finetune.app, name="finetune")
app.command(context_settings=bench.SETTINGS)(bench.bench)

# Newer releases of typer carry a click of their own: the base class is reached through what both export.
UsageError: type[Exception] = typer.BadParameter.__base__


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(metadata.version("mgpt-edge"))
        raise typer.Exit


def main() -> None:
    """Runs a verb; errors become one line (or JSON with --json) and an exit code."""
    with streams():
        try:
            with signals():
                code = _run()
        except Terminated as ended:
            print(f"mgpt: ended by {signal.Signals(ended.number).name}; run it again", file=sys.stderr)
            sys.stderr.flush()
            end_by(ended.number)
            raise
        if (error := lost_output()) is not None:
            print(f"mgpt: can't write the output: {error.strerror or error}", file=sys.stderr)
            code = code or 1
    sys.exit(code)


def _run() -> int:
    as_json = "--json" in sys.argv
    warnings.showwarning = _show_warning
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        if code == Interrupted.exit_code:  # newer releases of click return it
            code = _fail("interrupted", "Interrupted", code, as_json=as_json)
    except MgptError as error:
        code = _fail(str(error), type(error).__name__, error.exit_code, as_json=as_json)
    except UsageError as error:
        code = _fail(error.format_message(), "InvalidRequest", InvalidRequest.exit_code, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", "Interrupted", Interrupted.exit_code, as_json=as_json)
    return int(code or 0)


def _fail(message: str, kind: str, code: int, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    else:
        print(f"mgpt: {message}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    if issubclass(category, CompatibilityWarning):
        print(f"mgpt: warning: {message}", file=sys.stderr)
