"""The one trace: PyTorch modules to ONNX graphs whose weights are names without data."""

from __future__ import annotations

import contextlib
import logging
import warnings
from functools import cache, wraps
from typing import TYPE_CHECKING

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mgpt_edge.export.model import Decoder
from mgpt_edge.export.vqgan import VQGAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

    from mgpt_edge.export.config import DecoderConfig
    from mgpt_edge.export.vqgan import VQConfig

OPSET = 24


def _once(trace: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    """Seconds for a graph of the same shape become milliseconds: lowerings change the graph, so each gets its own."""
    traced = cache(trace)
    return wraps(trace)(lambda *shape: traced(*shape).clone())


@_once
def trace_decoder(config: DecoderConfig, norm_groups: tuple[int, int]) -> ir.Model:
    """Graph of `Decoder.forward`: rows, width and capacity are dynamic, attention is one node a layer.

    No weight is allocated: initializers stand under their state-dict names, for a lowering to fill.
    """
    rows, width, capacity = (torch.export.Dim(name) for name in ("rows", "width", "capacity"))
    tables = torch.zeros(32, config.head_dim // 2)
    cache = [torch.zeros(2, config.num_kv_heads, 32, config.head_dim) for _ in range(2 * config.num_layers)]
    return _trace(
        lambda: Decoder(config, norm_groups),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), tables, tables, *cache),
        ({0: rows, 1: width}, {0: rows}, {0: capacity}, {0: capacity}, ({0: rows, 2: capacity},) * len(cache)),
        inputs=["tokens", "lengths", "cos", "sin", *_cache_names(config, "past")],
        outputs=["hidden", *_cache_names(config, "present")],
    )


@_once
def trace_head(hidden_size: int, rows: int) -> ir.Model:
    """Graph from hidden states [1, n, hidden_size] to logits [1, n, rows]; its weight is called `weight`."""
    return _trace(
        lambda: nn.Linear(hidden_size, rows, bias=False),
        (torch.zeros(1, 2, hidden_size),),
        ({1: torch.export.Dim("n")},),
        inputs=["hidden"],
        outputs=["logits"],
    )


@_once
def trace_vq_decoder(config: VQConfig) -> ir.Model:
    """Graph from codes int64 [1, h, w] to pixels uint8 [1, h * stride, w * stride, 3]."""
    sides = {1: torch.export.Dim("h"), 2: torch.export.Dim("w")}
    return _trace(
        lambda: _Method(VQGAN(config), "decode_pixels"),
        (torch.zeros(1, 3, 4, dtype=torch.int64),),
        (sides,),
        inputs=["codes"],
        outputs=["pixels"],
    )


@_once
def trace_vq_encoder(config: VQConfig) -> ir.Model:
    """Graph from pixels uint8 [1, H, W, 3] to codes int64 [1, H / stride, W / stride]."""
    stride = config.stride
    sides = {1: stride * torch.export.Dim("h"), 2: stride * torch.export.Dim("w")}
    return _trace(
        lambda: _Method(VQGAN(config), "encode_pixels"),
        (torch.zeros(1, 3 * stride, 4 * stride, 3, dtype=torch.uint8),),
        (sides,),
        inputs=["pixels"],
        outputs=["codes"],
    )


class _Method(nn.Module):
    """Another method of a module as its `forward`."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.module, self.method)(x)


def _cache_names(config: DecoderConfig, prefix: str) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(config.num_layers) for kind in ("key", "value")]


def _trace(
    make: Callable[[], nn.Module],
    arguments: tuple[Tensor, ...],
    dynamic_shapes: tuple[object, ...],
    *,
    inputs: list[str],
    outputs: list[str],
) -> ir.Model:
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet():
        program = torch.onnx.export(
            make().eval(),
            arguments,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=dynamic_shapes,
            input_names=inputs,
            output_names=outputs,
        )
    # The exporter notes where each operator stood in the source: paths of this machine, and most of a graph's bytes.
    ClearMetadataAndDocStringPass()(program.model)
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about optional packages and its own internals; none of it concerns the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
