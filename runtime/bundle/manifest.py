"""`manifest.json`: everything a bundle says about itself, checked key by key when it is read."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from mgpt_edge.runtime.errors import BundleError
from mgpt_edge.runtime.family.layout import buckets
from mgpt_edge.runtime.family.tasks import conversations
from mgpt_edge.runtime.family.vocabulary import Vocabulary

SCHEMA = 4
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Sizes that the runtime allocates by, in elements."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """`stride` pixels a code on each side; `sizes` are (width, height) the checkpoint was trained for.

    `channels` is the VQ model's width at full resolution, by which its memory grows.
    """

    stride: int
    channels: int
    target_size: int
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def trained_sizes(self) -> list[tuple[int, int]]:
        return list(self.sizes) or buckets(self.target_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a request that does not say otherwise is answered with."""

    guidance: float
    top_k: int
    text_top_k: int
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An engine compiled from one of the bundle's graphs, for GPUs of the compute capabilities `sms`.

    `key` is a hash over the graph, `sms` and the version of TensorRT: equal ones need not be compiled again.
    """

    graph: str
    sms: list[int]
    tensorrt: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One checkpoint in one precision for one engine.

    `tasks` are what the checkpoint was trained for, each with its defaults; schema 1 knew text-to-image only.
    `plans` are engines compiled since, by the names of their files; schema 2 had none. They do not change what the
    bundle computes, so its own hash leaves them out.
    `width_invariant` was measured at export: a token's logits have the same bits in a pass of any width.
    `arithmetic` is the engine's (`EngineKind`) at export, and `half_vq` says whether the VQ model's weights are stored
    as float16, to be widened when they are loaded; schema 3 had neither.
    `created` says with what and from what, for people; nothing is decided by it.
    """

    schema: int
    name: str
    engine: str
    precision: str
    width_invariant: bool
    vocabulary: Vocabulary
    dimensions: Dimensions
    pictures: Pictures
    defaults: Defaults
    files: dict[str, FileEntry]
    tasks: dict[str, Defaults] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    arithmetic: int = 1
    half_vq: bool = False
    created: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """Parsed JSON -> manifest.

        Raises:
            BundleError: a newer schema, or a key that is missing, unknown or of the wrong type.
        """
        if not isinstance(data, dict):
            msg = f"manifest.json: expected an object, got {type(data).__name__}"
            raise BundleError(msg)
        schema = data.get("schema")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            msg = (
                f"manifest.json: schema {schema!r}, this mgpt-edge reads 1 to {SCHEMA}; "
                "upgrade it (pip install -U mgpt-edge) or export the checkpoint again (mgpt export)"
            )
            raise BundleError(msg)
        nested: dict[str, Any] = {
            "vocabulary": _read(Vocabulary, data, "vocabulary"),
            "dimensions": _read(Dimensions, data, "dimensions"),
            "pictures": _read(Pictures, data, "pictures"),
            "defaults": _read(Defaults, data, "defaults"),
            "files": {name: _read(FileEntry, data["files"], name) for name in _dict(data, "files")},
        }
        nested["tasks"] = {"text-to-image": nested["defaults"]}
        if "tasks" in data:
            nested["tasks"] = {name: _read(Defaults, data["tasks"], name) for name in _dict(data, "tasks")}
        if "plans" in data:
            nested["plans"] = {name: _read(Plan, data["plans"], name) for name in _dict(data, "plans")}
        if schema < 4:
            nested["half_vq"] = data.get("precision") in {"int4", "mixed", "nvfp4"}
        manifest = _construct(cls, {**data, **nested}, "manifest.json")
        manifest.check()
        return manifest

    def check(self) -> None:
        """Ranges that a hostile or damaged file could leave."""
        d, p = self.dimensions, self.pictures
        _whole("dimensions", d.layers, d.hidden_size, d.heads, d.kv_heads, d.head_dim)
        _whole("pictures", p.stride, p.channels, p.target_size, *(side for size in p.sizes for side in size))
        for s in (self.defaults, *self.tasks.values()):
            _whole("defaults", s.top_k, s.text_top_k)
            _finite(s.guidance, s.temperature)
        _finite(d.rope_theta)
        _whole("arithmetic", self.arithmetic)
        if not (d.heads % d.kv_heads == 0 and d.head_dim % 2 == 0 and p.stride in {8, 16}):
            msg = f"manifest.json: dimensions contradict each other: {d}, {p}"
            raise BundleError(msg)
        if self.vocabulary.separator is None and set(conversations()) & set(self.tasks):
            msg = (
                f"manifest.json: a vocabulary without a separator can't hold conversations, got {', '.join(self.tasks)}"
            )
            raise BundleError(msg)
        for name, plan in self.plans.items():
            _whole(f"plans: {name}", *plan.sms)
            if name not in self.files:
                msg = f"manifest.json: the plan {name} is none of the files"
                raise BundleError(msg)
        for name in self.files:
            if name != name.strip("./\\") or "/" in name or "\\" in name or name == "manifest.json":
                msg = f"manifest.json: file name {name!r} would lie outside the bundle"
                raise BundleError(msg)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        # As in the file, so that a bundle keeps its name, the hash over this.
        if self.schema < 4:
            del data["arithmetic"], data["half_vq"]
        if self.schema < 3:
            del data["plans"]
        if self.schema == 1:
            del data["tasks"]
        return data

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformer's files: decoder and heads."""
        return sum(entry.bytes for name, entry in self.files.items() if name.startswith(("decoder.", "head_")))


def _dict(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        msg = f"manifest.json: {key} must be an object, got {value!r}"
        raise BundleError(msg)
    return value


def _read(cls: type[T], data: dict[str, Any], key: str) -> T:
    return _construct(cls, _dict(data, key), f"manifest.json: {key}")


def _construct(cls: type[T], data: dict[str, Any], where: str) -> T:
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            msg = f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise BundleError(msg)
    if "sms" in data and not isinstance(data["sms"], list):
        msg = f"{where}: sms must be a list, got {data['sms']!r}"
        raise BundleError(msg)
    if "sizes" in data:
        data = {**data, "sizes": _pairs(data["sizes"], where)}
    for key, value in data.items():
        expected = TYPES.get(str(known[key].type))
        if expected is not None and (
            not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)
        ):
            msg = f"{where}: {key} must be {known[key].type}, got {value!r}"
            raise BundleError(msg)
    try:
        return cls(**data)
    except TypeError as error:
        msg = f"{where}: {str(error).partition(') ')[2] or error}"
        raise BundleError(msg) from error


TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _pairs(value: object, where: str) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list) or not all(isinstance(size, list | tuple) and len(size) == 2 for size in value):
        msg = f"{where}: sizes must be pairs [width, height], got {value!r}"
        raise BundleError(msg)
    return tuple((size[0], size[1]) for size in value)


def _whole(where: str, *values: object) -> None:
    for value in values:
        if type(value) is not int or not 1 <= value < 1 << 31:
            msg = f"manifest.json: {where}: expected whole numbers from 1, got {value!r}"
            raise BundleError(msg)


def _finite(*values: float) -> None:
    for value in values:
        if not 0 <= value < math.inf:
            msg = f"manifest.json: expected a finite number from 0, got {value!r}"
            raise BundleError(msg)
