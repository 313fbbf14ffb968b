"""`mgpt export`, `inspect`, `verify` and `estimate`: making bundles and knowing what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgpt_edge.cli.options import AsJson, RecordCount, Threads, VQFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.bundle.manifest import Manifest
    from mgpt_edge.runtime.engines.base import Engine


def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a Hugging Face repository id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle to make.")],
    vq: VQFolder = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int8, int4, mixed, w8a8, fp8 or nvfp4.")] = "int8",
    engine: Annotated[
        str | None,
        typer.Option(
            help="native (int8, int4), cpu (fp32, int8, int4), cuda (fp16, int8, int4), rtx or tensorrt (all but fp32) "
            "or tensorrt10 (all but fp32 and nvfp4); the best unless given."
        ),
    ] = None,
    target_size: Annotated[int | None, typer.Option(help="Side in pixels that the checkpoint was trained for.")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="What mgpt calibrate wrote: weights are then rounded by what they meet.")
    ] = None,
    gptq: Annotated[Path | None, typer.Option(help="What mgpt gptq wrote: the weights of int4, rounded.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compile a PyTorch checkpoint into a bundle."""
    need_torch()
    from mgpt_edge.export.bundle import export_bundle, no_decoder
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.statistics import Statistics

    opened = Checkpoint.open(checkpoint, vq)
    measured = None if statistics is None else Statistics.load(statistics, opened)
    if gptq is not None:
        opened = _rounded(opened, gptq, precision, engine, measured)
    with _progress(quiet=as_json) as progress:
        bundle = export_bundle(
            opened,
            output,
            precision=precision,
            engine=engine,
            target_size=target_size,
            statistics=measured,
            progress=progress,
        )
    note = no_decoder(opened)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    if as_json:
        print(json.dumps({"bundle": str(output), "bytes": size, "digest": bundle.digest, "note": note}))
        return
    print(f"{output}: {bundle.manifest.name}, {precision} for {bundle.manifest.engine}, {size / 1e6:,.1f} MB")
    if note:
        print(note)


def _rounded(
    checkpoint: Checkpoint, folder: Path, precision: str, engine: str | None, statistics: Statistics | None
) -> Checkpoint:
    from mgpt_edge.export.engines import best_engine
    from mgpt_edge.export.gptq import rounded_checkpoint
    from mgpt_edge.runtime.errors import InvalidRequest

    if precision != "int4" or statistics is not None:
        got = f"--precision {precision}" + (" --statistics" if statistics is not None else "")
        msg = f"the weights of --gptq are rounded to 4 bits already: it goes with --precision int4 alone, got {got}"
        raise InvalidRequest(msg)
    return rounded_checkpoint(checkpoint, folder, engine or best_engine(precision))


def inspect(path: Annotated[Path, typer.Argument(help="Bundle or checkpoint.")], as_json: AsJson = False) -> None:
    """Print what a bundle or a checkpoint is."""
    from dataclasses import asdict

    from mgpt_edge.runtime.bundle.folder import Bundle

    if _is_checkpoint(path):
        need_torch()
        from mgpt_edge.export.checkpoint import Checkpoint

        opened = Checkpoint.open(path)
        facts: dict[str, Any] = {
            "name": opened.defaults.name,
            "bytes": opened.total_bytes,
            "decoder": asdict(opened.config),
            "vocabulary": opened.vocabulary.to_json(),
            "defaults": asdict(opened.defaults),
            "vq": None if opened.vq is None else {**asdict(opened.vq.config), "draws": opened.vq.has_decoder},
        }
    else:
        bundle = Bundle.peek(path)
        facts = {**bundle.manifest.to_json(), "digest": bundle.digest}
    if as_json:
        print(json.dumps(facts))
    else:
        _print_tree(facts)


def verify(
    path: Annotated[Path, typer.Argument(help="Bundle.")],
    against: Annotated[str | None, typer.Option(help="Its checkpoint: how far is it from that in float32?")] = None,
    data: Annotated[Path | None, typer.Option(help="For --against: records, as for mgpt finetune.")] = None,
    records: RecordCount = 16,
    vq: VQFolder = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle: its hashes, its golden logits and a picture computed here, how well it follows its checkpoint."""
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.errors import InvalidRequest
    from mgpt_edge.runtime.golden import picture_there_and_back, recompute
    from mgpt_edge.runtime.model import Model

    if (against is None) != (data is None):
        msg = "a comparison takes both: --against CHECKPOINT --data RECORDS"
        raise InvalidRequest(msg)
    bundle = Bundle.peek(path)
    bundle.verify()
    engine = Model(bundle, threads=threads).engine
    picture_there_and_back(bundle, engine)
    facts = {"bundle": str(path), "files": len(bundle.manifest.files), "golden_error": recompute(bundle, engine)}
    found = {} if against is None or data is None else _compare(bundle, engine, against, vq, data, records, as_json)
    if as_json:
        print(json.dumps(facts | found))
        return
    error = f"golden logits within {facts['golden_error']:.1e}"
    print(f"{path}: {facts['files']} files as they were written; {error}")
    for head, figures in found.items():
        print(
            f"{head:5} {figures['positions']:7} positions, divergence {figures['divergence']:.4f} nats, "
            f"the likeliest token is the same in {figures['same']:.1%}"
        )


def _compare(
    bundle: Bundle, engine: Engine, against: str, vq: Path | None, data: Path, records: int, quiet: bool
) -> dict[str, dict[str, float]]:
    from dataclasses import asdict

    need_torch()
    from mgpt_edge.cli.progress import layers_done
    from mgpt_edge.export.agreement import agreement
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.finetune.encoder import read_conversations
    from mgpt_edge.runtime.errors import InvalidRequest

    checkpoint = Checkpoint.open(against, vq)
    if bundle.manifest.created.get("checkpoint") != checkpoint.fingerprint():
        msg = f"{bundle.folder} was made from another checkpoint than {against}, or that has changed since"
        raise InvalidRequest(msg)
    samples = read_conversations(checkpoint, data, records)
    conversations = [(sample.tokens, sample.learnt) for sample in samples]
    found = agreement(checkpoint, engine, conversations, layers_done(quiet=quiet))
    return {head: asdict(figures) for head, figures in found.items()}


def estimate(
    path: Annotated[Path, typer.Argument(help="Bundle or checkpoint.")],
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of a checkpoint: fp32, int8 or int4.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the memory that drawing a picture takes; exit code 1 if there is less, on the GPU for a bundle of one."""
    from mgpt_edge.runtime import machine
    from mgpt_edge.runtime.intake import memory
    from mgpt_edge.runtime.intake.request import parse_size

    manifest, others = _estimated(path, precision)
    target = manifest.pictures.target_size
    chosen = (target, target) if size is None else parse_size(size)
    need, (free, said) = memory.forecast(manifest, chosen), _free(manifest.engine)
    fits = free is not None and need.total_bytes <= free
    hint = None if free is None or fits else memory.what_would_fit([manifest, *others], chosen, free)
    facts = {"size": chosen, "precision": manifest.precision, **need.to_json(), "free_bytes": free, "fits": fits}
    if as_json:
        print(json.dumps({**facts, "hint": hint}))
    else:
        for name, count in need.to_json().items():
            print(f"{name.removesuffix('_bytes'):12} {machine.mebibytes(count):>14}")
        print(f"{'free here':12} {said:>14}")
        if hint:
            print(f"a picture of {chosen[0]}x{chosen[1]} in {manifest.precision} does not fit; {hint}")
    raise typer.Exit(0 if fits else 1)


def _free(engine: str) -> tuple[int | None, str]:
    """Bytes free where the engine keeps a bundle, and how to say it."""
    from mgpt_edge.runtime.engines import engine_kind
    from mgpt_edge.runtime.errors import IncompatibleEngine
    from mgpt_edge.runtime.machine import mebibytes

    try:
        count = engine_kind(engine).free_bytes()
    except IncompatibleEngine as error:
        return None, str(error)
    return count, mebibytes(count)


def _estimated(path: Path, precision: str | None) -> tuple[Manifest, list[Manifest]]:
    """The manifest to estimate by, and those of the checkpoint's other precisions."""
    from mgpt_edge.runtime.bundle.folder import Bundle
    from mgpt_edge.runtime.errors import InvalidRequest

    if not _is_checkpoint(path):
        manifest = Bundle.peek(path).manifest
        if precision not in {None, manifest.precision}:
            msg = f"{path} is a bundle in {manifest.precision}; to estimate {precision}, name its checkpoint"
            raise InvalidRequest(msg)
        return manifest, []
    need_torch()
    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.export.forecast import forecasts

    manifests = forecasts(Checkpoint.open(path))
    chosen = precision or "int8"
    if chosen not in manifests:
        msg = f"unknown precision {chosen!r}; known: {', '.join(manifests)}"
        raise InvalidRequest(msg)
    return manifests.pop(chosen), list(manifests.values())


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file() and not (path / "manifest.json").exists()


def need_torch() -> None:
    """Names the extra that export needs where it is missing."""
    from importlib.util import find_spec

    from mgpt_edge.runtime.errors import IncompatibleEngine

    missing = [name for name in ("torch", "onnxscript", "safetensors", "onnxruntime") if find_spec(name) is None]
    if missing:
        msg = f"reading checkpoints needs {', '.join(missing)}; install with: pip install 'mgpt-edge[cpu,export]'"
        raise IncompatibleEngine(msg)


class _progress:  # noqa: N801  used as a context manager's verb
    """A bar of the bytes written, with the time left."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, disable=quiet)
        self.task = self.bar.add_task("tracing", total=None)

    def __enter__(self) -> Callable[[str, int, int], None]:
        self.bar.start()
        return lambda what, done, total: self.bar.update(self.task, description=what, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _print_tree(facts: dict[str, Any], indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{name}")
            _print_tree(value, indent + "  ")
        else:
            print(f"{indent}{name:24} {value}")
