"""`mgpt gptq`: 4-bit weights rounded by what they meet on real conversations, for `mgpt export --gptq`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mgpt_edge.cli.options import AsJson, RecordCount, Records, VQFolder


def gptq(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a Hugging Face repository id.")],
    data: Records,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the rounded weights.")],
    engine: Annotated[str, typer.Option(help="That the bundle is for: native, cpu, cuda, rtx, tensorrt…")] = "native",
    vq: VQFolder = None,
    records: RecordCount = 64,
    target_size: Annotated[int | None, typer.Option(help="Side in pixels that pictures are fitted to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Round weights to 4 bits, errors made good by one another (GPTQ): hours for 7B weights, a killed run goes on."""
    from mgpt_edge.cli.bundles import need_torch
    from mgpt_edge.cli.progress import layers_done

    need_torch()
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.gptq import round_checkpoint
    from mgpt_edge.finetune.encoder import read_conversations

    opened = Checkpoint.open(checkpoint, vq)
    sequences = [sample.tokens for sample in read_conversations(opened, data, records, target_size)]
    round_checkpoint(opened, sequences, output, engine, layers_done(quiet=as_json))
    tokens = sum(map(len, sequences))
    if as_json:
        print(json.dumps({"weights": str(output), "records": len(sequences), "tokens": tokens}))
    else:
        print(f"{output}: weights for {engine}, rounded by {tokens} tokens of {len(sequences)} records")
