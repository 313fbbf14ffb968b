"""A file of records as tokens on disk, made once for a size of pictures and read at random."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mgpt_edge.finetune.conversation import Sample
from mgpt_edge.finetune.files import replace_atomically, write_json
from mgpt_edge.finetune.records import BadRecord, Record, read_records
from mgpt_edge.runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mgpt_edge.finetune.encoder import Encoder, Tokens
    from mgpt_edge.finetune.parallel import Processes

    Entries = Iterable[Record | BadRecord]

SHARD_RECORDS = 256
"""Records of a shard: what a kill loses at most, and what processes deal out among themselves."""
INDEX = "index.json"


class Tokenised:
    """The sequences of a folder that `tokenise` made.

    Attributes:
        fingerprint: of the records, their pictures and the checkpoint.
        records: in the file.
        cut: sequences whose end was cut off.
        bad: records that are not here, with their lines and why.
        lengths: int64 [n], tokens of each sequence.
        guided: bool [n], sequences whose prompt may be dropped.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        self.fingerprint, self.records, self.cut = index["fingerprint"], index["records"], index["cut"]
        self.bad = [BadRecord(**entry) for entry in index["bad"]]
        files = [safe_open(folder / name, "np") for name in index["shards"]]
        self.tokens, self.learnt = ([file.get_slice(kind) for file in files] for kind in ("tokens", "learnt"))
        lengths = [file.get_tensor("lengths") for file in files]
        self.lengths = np.concatenate(lengths)
        self.guided = np.concatenate([file.get_tensor("guided") for file in files])
        self.shard = np.repeat(np.arange(len(files)), list(map(len, lengths)))
        self.start = np.concatenate([np.cumsum(part) - part for part in lengths])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        shard, start = self.shard[index], int(self.start[index])
        end = start + int(self.lengths[index])
        return Sample(self.tokens[shard][start:end].tolist(), self.learnt[shard][start:end].tolist())


def tokenise(
    data: Path,
    encoder: Encoder,
    folder: Path,
    processes: Processes,
    *,
    most_pictures: int | None = None,
    skip_bad: bool = True,
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tokenised:
    """Encodes every record that is not yet in `folder`; after a kill it goes on with the next shard.

    Args:
        data: the records.
        encoder: of the checkpoint and the sizes.
        folder: gets a folder for each fingerprint: changed records, pictures or settings are encoded anew.
        processes: those that share the work; the folder is common to them.
        most_pictures: records with more are bad.
        skip_bad: whether bad records are left out; otherwise the first one ends it.
        report: called with the number of the record in work and of all.

    Raises:
        InvalidRequest: no record can be used, or a bad one is not to be skipped.
    """
    fingerprint, count = _fingerprint(data, encoder, most_pictures)
    if not count:
        msg = f"{data}: there are no records in this file"
        raise InvalidRequest(msg)
    folder = folder / fingerprint[:16]
    if not (folder / INDEX).exists():
        shards = range(-(-count // SHARD_RECORDS))
        records = read_records(data, most_pictures)
        for shard in shards:
            part = list(islice(records, SHARD_RECORDS))
            if shard % processes.ranks == processes.rank and not _shard(folder, shard).exists():
                _write_shard(_shard(folder, shard), _watched(part, count, report), encoder, skip_bad=skip_bad)
        processes.wait()
        if processes.first:
            _write_index(folder, [_shard(folder, shard) for shard in shards], fingerprint, count)
        processes.wait()
    tokenised = Tokenised(folder)
    if tokenised.bad and not skip_bad:
        raise _fatal(tokenised.bad[0])
    if not len(tokenised):
        msg = f"{data}: none of {count} records can be trained on; the first is {tokenised.bad[0]}"
        raise InvalidRequest(msg)
    return tokenised


def _fingerprint(data: Path, encoder: Encoder, most_pictures: int | None) -> tuple[str, int]:
    """A hash of everything that decides the tokens, and the number of records.

    Of a picture it covers path, size and time of change: reading them all would take as long as encoding.
    """
    settings = [encoder.checkpoint.fingerprint(), encoder.sizes, encoder.longest, most_pictures]
    digest, count = hashlib.sha256(json.dumps(settings).encode()), 0
    for record in read_records(data, most_pictures):
        count += 1
        digest.update(repr(record).encode())
        for path in record.pictures if isinstance(record, Record) else ():
            try:
                facts = path.stat()
            except (OSError, ValueError):  # encoding says what is wrong with it
                continue
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest(), count


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"


def _watched(part: Entries, count: int, report: Callable[[int, int], None]) -> Iterator[Record | BadRecord]:
    for entry in part:
        yield entry
        report(entry.number, count)


def _write_shard(path: Path, entries: Entries, encoder: Encoder, *, skip_bad: bool) -> None:
    encoded: list[Tokens] = []
    bad: list[BadRecord] = []
    for entry in entries:
        result = _encode(entry, encoder)
        if not isinstance(result, BadRecord):
            encoded.append(result)
        elif skip_bad:
            bad.append(result)
        else:
            raise _fatal(result)
    samples = [tokens.sample for tokens in encoded]
    arrays = {
        "tokens": np.array([token for sample in samples for token in sample.tokens], np.int32),
        "learnt": np.array([mark for sample in samples for mark in sample.learnt], np.bool_),
        "lengths": np.array(list(map(len, samples)), np.int64),
        "guided": np.array([tokens.guided for tokens in encoded], np.bool_),
    }
    cut = sum(tokens.cut for tokens in encoded)
    notes = {"bad": json.dumps([asdict(entry) for entry in bad]), "cut": str(cut)}
    replace_atomically(path, lambda draft: save_file(arrays, draft, notes))


def _encode(entry: Record | BadRecord, encoder: Encoder) -> Tokens | BadRecord:
    if isinstance(entry, BadRecord):
        return entry
    try:
        return encoder.encode(entry)
    except InvalidRequest as error:
        return BadRecord(entry.number, entry.line, str(error))


def _write_index(folder: Path, shards: list[Path], fingerprint: str, count: int) -> None:
    bad: list[dict[str, Any]] = []
    cut = 0
    for path in shards:
        notes = safe_open(path, "np").metadata()
        bad += json.loads(notes["bad"])
        cut += int(notes["cut"])
    facts = {"fingerprint": fingerprint, "records": count, "cut": cut, "bad": bad}
    write_json(folder / INDEX, {**facts, "shards": [path.name for path in shards]})


def _fatal(entry: BadRecord) -> InvalidRequest:
    return InvalidRequest(f"{entry}. Correct it, or leave such records out with --bad-records skip")
