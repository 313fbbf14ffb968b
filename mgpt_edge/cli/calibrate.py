"""`mgpt calibrate`: what a checkpoint's linears are given on real conversations, for `mgpt export --statistics`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgpt_edge.cli.options import AsJson

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.export.checkpoint import Checkpoint

LONGEST = 4096


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a Hugging Face repository id.")],
    data: Annotated[Path, typer.Option(help="Records, as for mgpt finetune: a JSON list, or a record on each line.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the statistics.")],
    vq: Annotated[
        Path | None, typer.Option(help="Folder of the VQ files, where they are not beside config.json.")
    ] = None,
    records: Annotated[int, typer.Option(min=1, help="How many, drawn from all of them.")] = 16,
    target_size: Annotated[int | None, typer.Option(help="Side in pixels that pictures are fitted to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a checkpoint's layers see, so that export rounds their weights better; a killed run goes on."""
    from mgpt_edge.cli.bundles import need_torch

    need_torch()
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import collect

    opened = Checkpoint.open(checkpoint, vq)
    sequences = _sequences(opened, data, records, target_size)
    statistics = collect(opened, sequences, output, _report(quiet=as_json))
    if as_json:
        print(json.dumps({"statistics": str(output), "records": len(sequences), "tokens": statistics.tokens}))
    else:
        print(f"{output}: {len(statistics.square)} inputs on {statistics.tokens} tokens of {len(sequences)} records")


def _sequences(checkpoint: Checkpoint, data: Path, count: int, target_size: int | None) -> list[list[int]]:
    """The tokens of `count` records, or of all that can be used where there are fewer."""
    import numpy as np
    import torch

    from mgpt_edge.finetune.encoder import Encoder
    from mgpt_edge.finetune.records import BadRecord, read_records
    from mgpt_edge.runtime.errors import InvalidRequest
    from mgpt_edge.runtime.layout import buckets

    target = target_size or checkpoint.defaults.target_size
    if target is None:
        msg = "nothing says which picture size this checkpoint was trained for; give --target-size, such as 768"
        raise InvalidRequest(msg)
    sizes = checkpoint.defaults.sizes if target_size is None else ()
    encoder = Encoder(checkpoint, sizes or buckets(target), LONGEST, torch.device("cpu"))
    entries = list(read_records(data))
    sequences, refused = [], ""
    for index in np.random.default_rng(0).permutation(len(entries)):
        entry = entries[index]
        if isinstance(entry, BadRecord):
            refused = refused or str(entry)
            continue
        try:
            sequences.append(encoder.encode(entry).sample.tokens)
        except InvalidRequest as error:
            refused = refused or str(error)
        if len(sequences) == count:
            break
    if not sequences:
        msg = f"{data}: none of {len(entries)} records can be used" + (f"; such as {refused}" if refused else "")
        raise InvalidRequest(msg)
    return sequences


def _report(*, quiet: bool) -> Callable[[int, int], None]:
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    return lambda layer, layers: console.print(f"layer {layer} of {layers}", end="\r")
