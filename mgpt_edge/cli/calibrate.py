"""`mgpt calibrate`: what a checkpoint's linears are given on real conversations, for `mgpt export --statistics`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mgpt_edge.cli.options import AsJson, RecordCount, Records, VQFolder


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a Hugging Face repository id.")],
    data: Records,
    output: Annotated[Path, typer.Option("-o", "--output", help="File of the statistics.")],
    vq: VQFolder = None,
    records: RecordCount = 16,
    target_size: Annotated[int | None, typer.Option(help="Side in pixels that pictures are fitted to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a checkpoint's layers see, so that export rounds their weights better; a killed run goes on."""
    from mgpt_edge.cli.bundles import need_torch
    from mgpt_edge.cli.progress import layers_done

    need_torch()
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import collect
    from mgpt_edge.finetune.encoder import read_conversations

    opened = Checkpoint.open(checkpoint, vq)
    sequences = [sample.tokens for sample in read_conversations(opened, data, records, target_size)]
    statistics = collect(opened, sequences, output, layers_done(quiet=as_json))
    if as_json:
        print(json.dumps({"statistics": str(output), "records": len(sequences), "tokens": statistics.tokens}))
    else:
        print(f"{output}: {len(statistics.square)} inputs on {statistics.tokens} tokens of {len(sequences)} records")
