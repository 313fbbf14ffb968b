"""What this machine allows at most: how fast memory is read and copied, products are made, and so a code is drawn.

The least time of a guided code is that of reading its bytes at the bandwidth of all threads, whatever the program.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer

from mgpt_edge.bench.measuring.spread import summary
from mgpt_edge.bench.models.random_checkpoint import SHAPES
from mgpt_edge.bench.models.roofline import PRECISIONS, Decode
from mgpt_edge.finetune.arithmetic import has_bfloat16
from mgpt_edge.runtime import machine
from mgpt_edge.runtime._native import read_bandwidth
from mgpt_edge.runtime.engines.gpu.device import Gpu
from mgpt_edge.runtime.errors import IncompatibleEngine, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BUFFER = 1 << 29  # bytes; far more than any cache holds
MATRIX = 2048
ROUNDS = 5
GPU_COPIES = 20  # so many at a time that starting them takes no part
SHOWN = {"375m": (512, 512), "7b": (768, 768)}
PROMPT = 64


def ceiling(
    threads: Annotated[int | None, typer.Option(min=1, help="At most; all cores unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure the machine, and print what follows."""
    cores = threads or machine.usable_cores()
    counts = sorted({1, *(2**k for k in range(1, 8) if 2**k < cores), cores})
    facts: dict[str, Any] = {
        "machine": machine.processor(),
        **_rates("read_gb_s", {count: partial(read_bandwidth, BUFFER, count, 0.2) for count in counts}),
        **_rates("copy_gb_s", _copies(counts)),
        **_rates("tera_operations_s", _products(cores)),
        **_of_gpu(),
    }
    read = facts["read_gb_s"]
    facts["codes"] = least(read[cores])
    if as_json:
        print(json.dumps(facts))
        return
    print(facts["machine"])
    for count in counts:
        print(f"{count:2} threads   read {read[count]:6.1f} GB/s   copy {facts['copy_gb_s'][count]:6.1f} GB/s")
    for name, rate in facts["tera_operations_s"].items():
        print(f"{name:5} products of {MATRIX}x{MATRIX}   {rate:6.2f} tera-operations/s")
    if "gpu" in facts:
        print(f"{facts['gpu']}   copy {facts['gpu_copy_gb_s']:.0f} GB/s, each byte counted once")
    for shape, precisions in facts["codes"].items():
        for name, of in precisions.items():
            print(f"{shape:5} {name:6} at least {of['ms']:8.2f} ms a code, {of['s']:8.2f} s a picture of {of['size']}")


def least(gb_s: float) -> dict[str, dict[str, dict[str, Any]]]:
    """By shape and precision: the least milliseconds a code and seconds a picture at this bandwidth."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for shape, size in SHOWN.items():
        form = SHAPES[shape]
        for name, precision in PRECISIONS.items():
            passes, read = Decode(form.decoder, form.vq.codes, precision).picture_bytes(size, PROMPT, form.vq.stride)
            seconds = read / (1e9 * gb_s)
            of = {"ms": 1e3 * seconds / passes, "s": seconds, "size": f"{size[0]}x{size[1]}"}
            found.setdefault(shape, {})[name] = of
    return found


def _rates(name: str, kinds: Mapping[Any, Callable[[], float]]) -> dict[str, dict[Any, Any]]:
    """By kind, under `name` the median of what it measures, and under `name_spread` nine tenths."""
    found = {kind: summary(name, [measure() for _ in range(ROUNDS)]) for kind, measure in kinds.items()}
    return {key: {kind: of[key] for kind, of in found.items()} for key in (name, f"{name}_spread")}


def _copies(counts: Sequence[int]) -> dict[int, Callable[[], float]]:
    """By threads: measures the GB/s that are copied, each byte counted once."""
    source = np.ones(BUFFER // 2, np.uint8)
    target = np.zeros_like(source)

    def measure(pool: ThreadPoolExecutor, threads: int) -> float:
        parts = np.array_split(target, threads), np.array_split(source, threads)
        return source.nbytes / _seconds(lambda: list(pool.map(np.copyto, *parts))) / 1e9

    return {count: partial(measure, ThreadPoolExecutor(count), count) for count in counts}


def _of_gpu() -> dict[str, Any]:
    """A GPU's name and the GB/s that are copied within its memory; nothing where there is none. Never run on one."""
    try:
        gpu = Gpu()
        source, target = gpu.allocate(BUFFER), gpu.allocate(BUFFER)
    except (IncompatibleEngine, OutOfMemory):
        return {}

    def copy() -> None:
        for _ in range(GPU_COPIES):
            gpu.copy(source.address, target.address, BUFFER)
        gpu.wait()

    copy()
    rates = [GPU_COPIES * BUFFER / _seconds(copy) / 1e9 for _ in range(ROUNDS)]
    return {"gpu": gpu.name, **summary("gpu_copy_gb_s", rates)}


def _products(threads: int) -> dict[str, Callable[[], float]]:
    """1e12 multiplications and additions a second by type: ONNX Runtime's of 8 bits, PyTorch's of floats."""
    torch.set_num_threads(threads)
    floats = torch.randn(MATRIX, MATRIX)
    sides = {"int8": _integers(threads), "fp32": lambda: floats @ floats}
    if has_bfloat16():
        brains = floats.bfloat16()
        sides["bf16"] = lambda: brains @ brains
    for product in sides.values():
        product()
    return {name: lambda product=product: 2e-12 * MATRIX**3 / _seconds(product) for name, product in sides.items()}


def _integers(threads: int) -> Callable[[], object]:
    """Makes one product of bytes; PyTorch's own is a plain loop on CPUs without AVX-512."""
    rows, columns = np.random.default_rng(0).integers(-128, 128, (2, MATRIX, MATRIX), np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, (MATRIX, MATRIX))],
        [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.INT32, (MATRIX, MATRIX))],
        [onnx.numpy_helper.from_array(columns, "b")],  # a constant: laid out once for the kernel, as weights are
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the next product needs the cores
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"a": rows.view(np.uint8)})


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
