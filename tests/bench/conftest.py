"""Small made-up results, in the shape in which the benches print theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mgpt_edge.bench.page.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOWS = (8, 16, 32)


def near(name: str, value: float) -> dict[str, Any]:
    """A median and a spread of 5 % to both sides."""
    return {name: value, f"{name}_spread": [0.95 * value, 1.05 * value]}


def made_up() -> dict[str, Any]:
    """What every bench might print."""
    rates = {"read_gb_s": {"1": 10.0, "2": 20.0}, "copy_gb_s": {"1": 5.0, "2": 8.0}}
    rates["tera_operations_s"] = {"int8": 1.0, "bf16": 0.5, "fp32": 0.2}
    spreads = {f"{name}_spread": {kind: [0.9 * v, 1.1 * v] for kind, v in of.items()} for name, of in rates.items()}
    sides = {"native, int8": 12.0, "cpu, int8": 40.0, "family's loop, float32": 200.0}
    keys = ("picture_s", "first_row_s", "code_ms", "codes_a_pass", "vq_decoder_s", "outside_us_a_code")
    ways = ["off", "auto", *(f"{way} {n}" for n in WINDOWS for way in ("window", "SJD, window", "coupled SJD, window"))]
    row = {"instruction_set": "avx2", "ids": 64, "top_k": 8, "torch_us": None}
    return {
        "ceiling": {**rates, **spreads},
        "peers": {
            "shape": "tiny",
            "context": 40,
            "threads": 2,
            **near("native_share", 0.5),
            "sides": {
                name: {
                    **near("ms", ms),
                    **near("times_native", ms / 12),
                    "operations": 1e9,
                    "bytes": 1e8,
                    "peer": name.startswith("family"),
                }
                for name, ms in sides.items()
            },
            "missing": {"llama.cpp, F16": "llama_cpp is not installed"},
        },
        "latency": {
            **near("load_s", 0.1),
            **near("count_4_throughput_x", 1.5),
            "peak_resident_mib": 100,
            "ways": [
                {"size": size, "speculate": speculate, **{k: v for key in keys for k, v in near(key, 2.0).items()}}
                for size in ("32x32", "64x64")
                for speculate in ("off", "auto")
            ],
        },
        "speculation": [{"way": way, "same": True, **near("ms", 9.0), **near("codes_a_pass", 2.0)} for way in ways],
        "sampler": {"rows": [{**row, **near("native_us", 20.0), **near("numpy_us", 400.0)}]},
        "chat": {"times": {"a turn": near("ratio", 0.4)}},
        "quality": {"32x32, one solid": "95.0 % (90.0-98.0, n=100)", "depth, mean relative error": "0.123"},
        "precisions": [_precision("native", 1.0), _precision("cpu", 3.0), _precision("rtx", None)],
    }


def _precision(engine: str, milliseconds: float | None) -> dict[str, Any]:
    share = "95.0 % (90.0-98.0, n=100)"
    return {
        "engine": engine,
        "precision": "int8",
        "megabytes": 7.0,
        "agreement": {"image": {"positions": 100, "divergence": 0.01, "same": 0.97}},
        "shares": {f"32x32, {kind}": share for kind in ("one solid", "two solids", "held-out pair")},
        "loss": {"points": -1.0, "low": -3.0, "high": 1.0},
        **(near("code_ms", milliseconds) if milliseconds else {"code_ms": None, "code_ms_spread": None}),
    }


@pytest.fixture
def results() -> Callable[..., Results]:
    """Results of every bench; named arguments replace what they say."""

    def make(**given: Any) -> Results:
        parts = {part: {"command": f"mgpt bench {part} --json", "facts": facts} for part, facts in made_up().items()}
        settings = {"bundle": "tiny int8, 0123", "engine": "native", "full": False}
        usual = {"machine": {"processor": "one", "cores": 2}, "versions": {"python": "3"}, "settings": settings}
        return Results(**(usual | {"command": "mgpt bench report -o here", "parts": parts} | given))

    return make
