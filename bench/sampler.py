"""What one draw costs on one core: ours, its NumPy reference, and torch."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mgpt_edge.bench.measuring.spread import summary
from mgpt_edge.runtime import _native
from mgpt_edge.runtime.sampling import sampler as sampling
from mgpt_edge.runtime.sampling import specification

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_CODE = 4
CASES = [(8192, 2000), (8192, 8192), (65536, 50)]
"""(ids, top-k): an image code as the family samples it, one without top-k, and text."""


def microseconds(call: Callable[[int], object], repeats: int) -> list[float]:
    """Of single calls after a warm-up tenth; the argument is the position, so that every call draws anew."""
    times = []
    for position in range(repeats + repeats // 10):
        start = time.perf_counter_ns()
        call(position)
        times.append(time.perf_counter_ns() - start)
    return [time_ns / 1000 for time_ns in times[repeats // 10 :]]


def torch_call(cond: np.ndarray, uncond: np.ndarray, top_k: int, guidance: float) -> Callable[[int], int] | None:
    """What the reference implementation does with the same two rows; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    c, u = torch.from_numpy(cond), torch.from_numpy(uncond)

    def call(_: int) -> int:
        values, ids = torch.topk(u + guidance * (c - u), top_k)
        return FIRST_CODE + int(ids[torch.multinomial(torch.softmax(values, 0), 1)])

    return call


def measure(size: int, top_k: int, repeats: int) -> dict[str, Any]:
    """Median microseconds of the three, on random logits of two rows."""
    cond, uncond = (np.random.default_rng(1).normal(size=(2, size)) * 3).astype(np.float32)
    guidance, high = 4.0, FIRST_CODE + size
    draw = sampling.Sampler(guidance, top_k, 1.0, 7)
    case = {"first_id": FIRST_CODE, "low": FIRST_CODE, "high": high, "guidance": guidance, "top_k": top_k}
    case |= {"temperature": 1.0, "seed": 7}
    native = microseconds(lambda position: draw(cond, uncond, FIRST_CODE, FIRST_CODE, high, position), repeats)
    numpy = microseconds(lambda p: specification.sample(cond, uncond, **case, position=p), repeats // 10)
    call = torch_call(cond, uncond, top_k, guidance)
    torch = {"torch_us": None} if call is None else summary("torch_us", microseconds(call, repeats // 10))
    return {"ids": size, "top_k": top_k, **summary("native_us", native), **summary("numpy_us", numpy), **torch}


def sampler(
    repeats: Annotated[int, typer.Option(min=10, help="Native calls; the others get a tenth.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure every instruction set of this machine."""
    rows = []
    for name in _native.instruction_sets():
        _native.use_instruction_set(name)
        rows += [{"instruction_set": name, **measure(size, top_k, repeats)} for size, top_k in CASES]
    if as_json:
        print(json.dumps({"bench": "sampler", "rows": rows}))
        return
    print("2 rows, guided, one core, median µs a call, Python included; in brackets: times the native call")
    for row in rows:
        others = "".join(
            f"  {name} {row[f'{name}_us']:8.1f} ({row[f'{name}_us'] / row['native_us']:5.1f}x)"
            for name in ("numpy", "torch")
            if row[f"{name}_us"] is not None
        )
        case = f"{row['instruction_set']:9} {row['ids']:6} ids  top-k {row['top_k']:5}"
        print(f"{case}  native {row['native_us']:7.1f}{others}")
