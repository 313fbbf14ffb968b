"""A checkpoint on disk: its dimensions, tokenizer, defaults, and its tensors one at a time."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import torch

from mgpt_edge.export import hub
from mgpt_edge.export.config import DecoderConfig
from mgpt_edge.export.defaults import UNSUPPORTED, Defaults, known_name
from mgpt_edge.export.fingerprint import fingerprint
from mgpt_edge.export.shards import Shards, read_json
from mgpt_edge.export.tokenizer import BOS, first_token, read_vocabulary
from mgpt_edge.export.vqfiles import HELP, INSIDE, VQFiles
from mgpt_edge.runtime.errors import CheckpointError, CompatibilityWarning
from mgpt_edge.runtime.family.prompt import SEPARATOR
from mgpt_edge.runtime.family.tasks import conversations

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from mgpt_edge.export.vqgan import VQConfig
    from mgpt_edge.runtime.family.vocabulary import Vocabulary

TOKENIZERS = ("tokenizer.json", "text_tokenizer.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QK_NORM = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_norm\.(weight|bias)")
# Rotary tables that old transformers versions stored; they are recomputed.
RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint of the family; `open` makes it.

    Opening reads headers only. Tensors come in the dtype of the file, each in memory of its own.

    Attributes:
        wide: names of the weights that keep 8 bits in a bundle in `mixed` precision; `mixed.mix` chooses them.
    """

    source: str
    folder: Path
    config: DecoderConfig
    defaults: Defaults
    vocabulary: Vocabulary
    tokenizer_json: str
    shards: Shards
    vq: VQFiles | None
    wide: frozenset[str] = frozenset()

    @classmethod
    def open(cls, source: str | Path, vq: Path | None = None) -> Checkpoint:
        """Opens a folder, or fetches a Hugging Face repository and opens that.

        Args:
            source: a folder with config.json, tokenizer.json and safetensors; or a repository id, `owner/name`.
            vq: folder or file of the VQ weights, where they are not beside config.json.

        Raises:
            CheckpointError: anything missing, damaged, contradictory or of another family.
        """
        folder = _folder(source)
        if not (folder / "config.json").is_file():
            msg = f"{folder}: there is no config.json here; expected a Hugging Face checkpoint folder"
            raise CheckpointError(msg)
        json_config = read_json(folder / "config.json")
        config = DecoderConfig.from_json(json_config)
        tokenizer_json = _read_tokenizer(folder, vq)
        shards = Shards.open(folder)
        _check_tensors(shards, config)
        vq_files = VQFiles.find(folder, vq, shards, json_config.get("vq_config"))
        vocabulary = _fit(read_vocabulary(tokenizer_json, _read_bos(folder)), config.vocab_size)
        if vq_files is not None:
            _check_codebook(vocabulary, vq_files)
        defaults = Defaults.find(folder, str(source))
        _check_conversations(vocabulary, defaults)
        return cls(
            source=str(source),
            folder=folder,
            config=config,
            defaults=defaults,
            vocabulary=vocabulary,
            tokenizer_json=tokenizer_json,
            shards=shards,
            vq=vq_files,
        )

    def names(self) -> tuple[str, ...]:
        """The decoder's tensors by their Hugging Face names, in the order they are used."""
        return tuple(self.config.shapes())

    def tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor in the file's dtype and shape; `lm_head.weight` of a tied checkpoint is the embedding."""
        return self.shards.tensor(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape in the file: q_norm and k_norm may have `model_parallel_size` rows or one for each head."""
        return self.shards.entry(self._stored(name)).shape

    def dtype(self, name: str) -> torch.dtype:
        return self.shards.entry(self._stored(name)).dtype

    def array(self, name: str) -> NDArray[np.generic]:
        """`tensor` as an array; bfloat16 in the type that ml_dtypes adds to NumPy."""
        return to_array(self.tensor(name))

    @property
    def norm_groups(self) -> tuple[int, int]:
        """Stored rows of the query and key norms; every layer has as many."""
        q, k = (self.shape(f"model.layers.0.self_attn.{x}_norm.weight")[0] for x in "qk")
        return q, k

    def tensor_bytes(self, name: str) -> int:
        return self.shards.entry(self._stored(name)).nbytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the decoder's tensors in their files, without the VQ model."""
        return sum(self.shards.entry(name).nbytes for name in self.names())

    def qk_norm(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Affines of the query and key norms of a layer, a row for each head.

        A stored row belongs to one rank of the training's tensor parallelism and serves its heads, which are
        neighbours; the normalisation itself has no statistic across heads, so repeating rows is exact.

        Returns:
            q weight and q bias [num_heads, head_dim], k weight and k bias [num_kv_heads, head_dim].
        """
        prefix = f"model.layers.{layer}.self_attn"
        q_weight, q_bias = (
            self._per_head(f"{prefix}.q_norm.{part}", self.config.num_heads) for part in ("weight", "bias")
        )
        k_weight, k_bias = (
            self._per_head(f"{prefix}.k_norm.{part}", self.config.num_kv_heads) for part in ("weight", "bias")
        )
        return q_weight, q_bias, k_weight, k_bias

    def _per_head(self, name: str, heads: int) -> torch.Tensor:
        stored = self.tensor(name)
        return stored.repeat_interleave(heads // stored.shape[0], dim=0)

    @property
    def vq_config(self) -> VQConfig | None:
        """The VQ model's dimensions, or None where the checkpoint comes without VQ weights."""
        return self.vq.config if self.vq else None

    def vq_names(self) -> tuple[str, ...]:
        """The VQ model's tensors by Meta's names; empty without VQ weights."""
        return tuple(sorted(self.vq.shapes)) if self.vq else ()

    def vq_tensor(self, name: str) -> torch.Tensor:
        """Reads one tensor of the VQ model by Meta's name, in the file's dtype.

        Raises:
            CheckpointError: there are no VQ weights, or not this one.
        """
        if self.vq is None:
            msg = f"{self.source}: no VQ weights; {HELP}"
            raise CheckpointError(msg)
        if name not in self.vq.shapes:
            msg = f"{self.source}: the VQ weights have no {name!r}"
            raise CheckpointError(msg)
        return self.vq.load(name)

    def fingerprint(self) -> str:
        """SHA-256 over texts, headers and the first 4 KiB of every tensor: see `export/fingerprint.py`."""
        texts = [self.folder / name for name in ("config.json", *TOKENIZERS, TOKENIZER_CONFIG, "mgpt.json")]
        return fingerprint(texts, self.shards, self.vq.files if self.vq else ())

    def _stored(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.config.tied_embeddings else name


def _folder(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        unsupported = known_name(str(source), UNSUPPORTED)
        if unsupported:
            msg = f"{source} can't be exported: {UNSUPPORTED[unsupported]}"
            raise CheckpointError(msg)
        return path
    if path.exists():
        msg = f"{source}: expected a folder, this is a file; give the folder that holds config.json"
        raise CheckpointError(msg)
    if isinstance(source, str) and hub.is_repository(source):
        return hub.fetch(source)
    msg = f"{source}: no such folder, and not a Hugging Face repository id (owner/name)"
    raise CheckpointError(msg)


def _read_tokenizer(folder: Path, vq: Path | None) -> str:
    places = [folder] if vq is None else [folder, vq if vq.is_dir() else vq.parent]
    for path in (place / name for place in places for name in TOKENIZERS):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                msg = f"{path}: cannot be read: {error}"
                raise CheckpointError(msg) from error
    msg = f"{folder}: there is no tokenizer.json here (Meta calls it text_tokenizer.json); copy it beside config.json"
    raise CheckpointError(msg)


def _read_bos(folder: Path) -> str:
    path = folder / TOKENIZER_CONFIG
    return first_token(read_json(path)) if path.is_file() else BOS


def _check_tensors(shards: Shards, config: DecoderConfig) -> None:
    expected = config.shapes()
    missing = [name for name in expected if name not in shards.entries]
    if missing:
        msg = f"the checkpoint lacks {len(missing)} of {len(expected)} tensors, the first are {', '.join(missing[:3])}"
        raise CheckpointError(msg)
    for name, shape in expected.items():
        entry = shards.entry(name)
        allowed = {shape}
        if match := QK_NORM.fullmatch(name):
            allowed.add((config.num_heads if match[1] == "q" else config.num_kv_heads, config.head_dim))
        if entry.shape not in allowed:
            wanted = " or ".join(str(list(shape)) for shape in sorted(allowed))
            msg = f"{entry.path}: {name} should have the shape {wanted} by config.json, got {list(entry.shape)}"
            raise CheckpointError(msg)
        if entry.dtype not in FLOATS:
            msg = f"{entry.path}: {name} is {entry.dtype}, expected float32, bfloat16 or float16; is it quantised?"
            raise CheckpointError(msg)
    _check_norm_rows(shards, expected)
    tied = {HEAD} if config.tied_embeddings else set()
    strange = [
        name
        for name in shards.entries
        if name not in expected and name not in tied and not name.startswith(INSIDE) and not RECOMPUTED.fullmatch(name)
    ]
    if strange:
        shown = ", ".join(sorted(strange)[:5])
        msg = f"ignored {len(strange)} tensors this package does not know, the first are {shown}"
        warnings.warn(msg, CompatibilityWarning, stacklevel=3)


def to_array(tensor: torch.Tensor) -> NDArray[np.generic]:
    """A tensor's memory as a NumPy array, in its own dtype."""
    if tensor.dtype == torch.bfloat16:  # NumPy has none of its own
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _check_norm_rows(shards: Shards, names: Iterable[str]) -> None:
    """One graph serves every layer, so each of the two norms has the same number of rows everywhere."""
    rows: dict[str, int] = {}
    for name in names:
        if match := QK_NORM.fullmatch(name):
            found = shards.entry(name).shape[0]
            if rows.setdefault(match[1], found) != found:
                msg = f"{name} has {found} rows, other {match[1]}_norm tensors {rows[match[1]]}: a mixed conversion"
                raise CheckpointError(msg)


def _fit(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The tokenizer's vocabulary with as many ids as the model has rows."""
    if vocabulary.size > size:
        msg = (
            f"tokenizer.json has {vocabulary.size} ids, config.json a vocab_size of {size}: they do not belong together"
        )
        raise CheckpointError(msg)
    return replace(vocabulary, size=size)


def _check_conversations(vocabulary: Vocabulary, defaults: Defaults) -> None:
    if vocabulary.separator is None and set(conversations()) & set(defaults.tasks):
        msg = (
            f"mgpt.json: the tokenizer has no token {SEPARATOR}, so nothing would end an answer in words; "
            f"leave {' and '.join(sorted(conversations()))} out of its tasks"
        )
        raise CheckpointError(msg)


def _check_codebook(vocabulary: Vocabulary, vq: VQFiles) -> None:
    shape = vq.shapes.get("quantize.embedding.weight")
    if shape is None or shape[0] != vocabulary.codes:
        found = "no quantize.embedding.weight" if shape is None else f"{shape[0]} codes"
        msg = f"the tokenizer has {vocabulary.codes} image codes, the VQ weights {found}: they do not belong together"
        raise CheckpointError(msg)
