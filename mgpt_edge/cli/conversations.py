"""Records for the verbs that run a checkpoint over real conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.finetune.conversation import Sample

LONGEST = 4096  # tokens above which a conversation is cut


def read_conversations(checkpoint: Checkpoint, data: Path, count: int, target_size: int | None = None) -> list[Sample]:
    """`count` records as tokens, drawn from all of them, or all that can be used where there are fewer.

    Raises:
        InvalidRequest: none can be used, or nothing says which size pictures have.
    """
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
    samples, refused = [], ""
    for index in np.random.default_rng(0).permutation(len(entries)):
        entry = entries[index]
        if isinstance(entry, BadRecord):
            refused = refused or str(entry)
            continue
        try:
            samples.append(encoder.encode(entry).sample)
        except InvalidRequest as error:
            refused = refused or str(error)
        if len(samples) == count:
            break
    if not samples:
        msg = f"{data}: none of {len(entries)} records can be used" + (f"; such as {refused}" if refused else "")
        raise InvalidRequest(msg)
    return samples


def layers_done(*, quiet: bool) -> Callable[[int, int], None]:
    """Says how far a run over a checkpoint's layers is."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    return lambda layer, layers: console.print(f"layer {layer} of {layers}", end="\r")
