"""Fetching a checkpoint from Hugging Face, and saying what is wanted where that is impossible."""

from __future__ import annotations

import re
from pathlib import Path

from mgpt_edge.export.defaults import UNSUPPORTED, known_name
from mgpt_edge.runtime.errors import CheckpointError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json",
    "model-*.safetensors", "mgpt.json", "vqgan.safetensors", "vqgan.yaml",
)  # fmt: skip


def is_repository(source: str) -> bool:
    """Whether `source` reads like a repository id, `owner/name`."""
    return REPOSITORY.fullmatch(source) is not None and not source.startswith(".")


def fetch(repository: str) -> Path:
    """Downloads a repository's needed files, or finds them in the cache; a second call fetches nothing again.

    Raises:
        CheckpointError: no such repository, no access, no network, or no huggingface_hub. It names the files and
            where to put them by hand.
    """
    unsupported = known_name(repository, UNSUPPORTED)
    if unsupported:
        msg = f"{repository} can't be exported: {UNSUPPORTED[unsupported]}"
        raise CheckpointError(msg)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        msg = f"{repository}: fetching needs huggingface_hub: pip install 'mgpt-edge[export]'; {_by_hand(repository)}"
        raise CheckpointError(msg) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=list(WANTED)))
    except Exception as error:
        # Offline, unknown, gated, disk full: the classes change with huggingface_hub's HTTP library, and the first
        # line of the message says which it was.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        msg = f"{repository}: cannot be fetched ({type(error).__name__}: {reason}); {_by_hand(repository)}"
        raise CheckpointError(msg) from error


def _by_hand(repository: str) -> str:
    folder = repository.rpartition("/")[2]
    return (
        f"on a machine with a network run `hf download {repository} --local-dir {folder}`, or put config.json, "
        "tokenizer.json, tokenizer_config.json, model.safetensors.index.json and its model-*.safetensors into a "
        "folder; then give that folder"
    )
