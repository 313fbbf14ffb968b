"""Seconds a picture on a machine that is not at hand: an estimate from bytes and bandwidth, never a measurement.

A guided code reads every weight and both rows' K/V once. Left out: the prompt's pass, the VQ decoder, everything
outside the passes. `--device here` takes this machine's bandwidth and the share of it that the native engine reaches
with a smaller model, both measured now.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mgpt_edge.bench.measuring.sides import BASE_BUNDLE, Case, measure, ours
from mgpt_edge.bench.models.random_checkpoint import SHAPES, shape_named, write_checkpoint
from mgpt_edge.bench.models.roofline import PRECISIONS, Decode, Device, device
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.runtime import machine
from mgpt_edge.runtime.intake.request import parse_size

HERE = "here"
PROBE = "probe"
"""Shape of the smaller model: more bytes than caches hold, written and exported within seconds."""
MEMORY_FOR_THE_REST = 1.5  # GiB: system, VQ decoder, workspaces


def simulate(
    name: Annotated[str, typer.Option("--device", help="A machine, or here; an unknown name lists them.")] = HERE,
    shape: Annotated[str, typer.Option(help="One of the random checkpoints' shapes.")] = "7b",
    size: Annotated[str | None, typer.Option(help="WxH; the shape's own unless given.")] = None,
    saved: Annotated[float, typer.Option(min=1, help="Passes that speculation saves, as a factor; 1 is none.")] = 1.0,
    prompt: Annotated[int, typer.Option(min=0, help="Tokens of the prompt.")] = 64,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Estimate a picture in every precision."""
    target = shape_named(shape).target_size
    pixels = parse_size(size) if size else (target, target)
    target = here() if name == HERE else device(name)
    facts = estimates(target, shape, pixels, saved, prompt)
    if as_json:
        print(json.dumps({"estimate": True, "device": name, "shape": shape, "size": pixels, "precisions": facts}))
        return
    print(f"an estimate, not a measurement: {shape}, {pixels[0]}x{pixels[1]}, {name}")
    print(f"assumed: {target.gb_s:g} GB/s, {target.share:.0%} of it reached ({target.source}),")
    print(f"         {target.gib:g} GiB of memory, prompt of {prompt} tokens, speculation saves {saved:g}x")
    for precision, of in facts.items():
        note = "" if of["fits"] else "  does not fit"
        print(f"{precision:6} {of['gb']:6.1f} GB  {of['ms']:8.2f} ms a code  {of['s']:8.1f} s a picture{note}")


def estimates(target: Device, shape: str, size: tuple[int, int], saved: float, prompt: int) -> dict[str, Any]:
    """By precision: gigabytes of weights and K/V, milliseconds a code, seconds a picture, whether it fits."""
    form, found = SHAPES[shape], {}
    for name, precision in PRECISIONS.items():
        decode = Decode(form.decoder, form.vq.codes, precision)
        passes, read = decode.picture_bytes(size, prompt, form.vq.stride)
        held = decode.held_bytes(passes + prompt)
        seconds = read / (1e9 * target.gb_s * target.share) / saved
        fits = held + MEMORY_FOR_THE_REST * 2**30 < target.gib * 2**30
        found[name] = {"gb": held / 1e9, "ms": 1e3 * seconds / passes, "s": seconds, "fits": fits}
    return found


def here() -> Device:
    """This machine, its bandwidth and what the native engine makes of it measured now."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "checkpoint", SHAPES[PROBE], vq=False)
        threads = machine.usable_cores()
        case = Case(checkpoint=Checkpoint.open(folder / "checkpoint"), folder=folder, context=128, threads=threads)
        facts = measure(case, dict(ours(case, [BASE_BUNDLE], streams=[1])), 15)
    free = machine.available_bytes() / 2**30
    return Device(facts["read_gb_s"], free, facts["native_share"], "the native engine's with a smaller model, now")
