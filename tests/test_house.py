"""Who may import whom, type imports included; and that a new engine, precision, lowering or task needs no table."""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mgpt_edge.export import lower, quantise
from mgpt_edge.export.bundle import export_bundle
from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.engines import engines
from mgpt_edge.export.lower.lowering import lowerings
from mgpt_edge.export.quantise.precision import precisions
from mgpt_edge.runtime import engines as runtime_engines
from mgpt_edge.runtime.bundle.folder import Bundle
from mgpt_edge.runtime.engines import engine_kinds
from mgpt_edge.runtime.family import tasks as family_tasks
from mgpt_edge.runtime.family.tasks import tasks
from mgpt_edge.runtime.model import Model
from tests.families import write_talker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "export", "finetune", "bench", "mgpt_edge/cli")
ROOMS_OF_RUNTIME = [
    ("errors", "catalogue", "files", "_native"),
    ("machine", "process"),
    ("sampling", "family"),
    ("bundle",),
    ("engines",),
    ("intake",),
    ("decoding",),
    ("results",),
    ("loaded", "golden"),
    ("chat",),
    ("model",),
]
"""From the ground up: a room imports from floors below its own."""


def modules(room: str) -> dict[str, Path]:
    """Files of a room, by the names of their modules."""
    names = {path: ".".join(("mgpt_edge", *path.relative_to(ROOT).with_suffix("").parts)) for path in files(room)}
    return {
        name.replace("mgpt_edge.mgpt_edge.", "mgpt_edge.").removesuffix(".__init__"): p for p, name in names.items()
    }


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, each as far as it is named."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports by the one name that a module has"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("mgpt_edge.")}


def below(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == f"mgpt_edge.{room}" or name.startswith(f"mgpt_edge.{room}.") for room in rooms)


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("runtime", ("export", "finetune", "bench", "cli")),
        ("export", ("finetune", "bench", "cli")),
        ("finetune", ("bench", "cli")),
        ("bench", ("cli",)),
    ],
)
def test_rooms_import_what_lies_below_them(room: str, never: tuple[str, ...]) -> None:
    wrong = [(name, one) for name, path in modules(room).items() for one in imported(path) if below(one, never)]
    assert wrong == []


def test_the_users_training_knows_nothing_of_the_small_model() -> None:
    of_mini = ("finetune.mini",)
    users = {name: path for name, path in modules("finetune").items() if not below(name, of_mini)}
    assert [(name, one) for name, path in users.items() for one in imported(path) if below(one, of_mini)] == []


def test_arrows_in_the_runtime_go_one_way() -> None:
    floors = {room: floor for floor, rooms in enumerate(ROOMS_OF_RUNTIME) for room in rooms}
    wrong = []
    for name, path in modules("runtime").items():
        if name == "mgpt_edge.runtime":
            continue
        own = name.split(".")[2]
        for one in imported(path):
            other = one.split(".")[2] if one.startswith("mgpt_edge.runtime.") else own
            if other != own and floors[other] >= floors[own]:
                wrong.append((name, one))
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_of_imports(room: str) -> None:
    """In the runtime type imports are arrows, too; what is imported inside a function is none."""
    every, types = modules(room), room == "runtime"
    edges = {name: {*_at_the_top(path, every, types=types)} - {name} for name, path in every.items()}
    while edges:
        free = {name for name, others in edges.items() if not others & edges.keys()}
        assert free, f"a circle in {sorted(edges)}"
        edges = {name: others for name, others in edges.items() if name not in free}


def _at_the_top(path: Path, every: dict[str, Path], *, types: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = (node for node in tree.body if isinstance(node, ast.If) and types)
    for node in [*tree.body, *(inner for branch in checked for inner in branch.body)]:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield next((n for n in (f"{node.module}.{alias.name}", node.module) if n in every), "")


DUMMIES = {
    "engines": (
        runtime_engines,
        """
        from mgpt_edge.runtime.engines.graphs import onnxruntime
        from mgpt_edge.runtime.engines.kind import EngineKind
        from mgpt_edge.runtime.engines.cpu import CpuEngine

        KIND = EngineKind(
            name="dummy", order=9, lowering="dummy", on_gpu=False, element_bytes=4, load=CpuEngine, check=onnxruntime
        )
        """,
    ),
    "lowerings": (
        lower,
        """
        from mgpt_edge.export.lower.cpu import CpuLowering


        class DummyLowering(CpuLowering):
            name = "dummy"


        LOWERING = DummyLowering()
        """,
    ),
    "precisions": (
        quantise,
        """
        from mgpt_edge.export.lower.linears import EMIT
        from mgpt_edge.export.quantise.int8 import Int8Linear
        from mgpt_edge.export.quantise.precision import Precision

        DUMMY = Precision(
            name="dummy8",
            order=9,
            bits=8,
            linear={"bytes": lambda weight, _: Int8Linear(weight)},
            emit={"dummy": EMIT["int8"]},
        )
        """,
    ),
    "tasks": (
        family_tasks,
        """
        from mgpt_edge.runtime.family.tasks.task import Task

        HAIKU = Task(name="haiku", order=99, template="Draw a haiku: {prompt}", given="words")
        """,
    ),
}


@pytest.fixture
def dummies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One new file in each of four rooms, and nothing else."""
    caches = (engine_kinds, lowerings, precisions, tasks)
    for room, (package, text) in DUMMIES.items():
        folder = tmp_path / room
        folder.mkdir()
        (folder / "dummy.py").write_text(textwrap.dedent(text), encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()
    for package, _ in DUMMIES.values():
        sys.modules.pop(f"{package.__name__}.dummy", None)


@pytest.mark.usefixtures("dummies")
def test_what_is_new_is_a_file_in_its_room(tmp_path: Path) -> None:
    """A checkpoint of the new task is exported in the new precision by the new lowering, and the new engine draws."""
    assert engines()["dummy"] == ("fp32", "int8", "int4", "dummy8")
    folder = write_talker(tmp_path / "talker")
    (folder / "mgpt.json").write_text('{"name": "poet", "target_size": 64, "tasks": {"haiku": {}}}')
    export_bundle(Checkpoint.open(folder), tmp_path / "bundle", precision="dummy8", engine="dummy")
    model = Model(Bundle.open(tmp_path / "bundle"), threads=1)
    assert list(model.manifest.tasks) == ["haiku"]
    image = model.generate("an old pond", task="haiku", size=(64, 64), seed=1)
    assert image.size == (64, 64)  # type: ignore[union-attr]
    assert image.info["mgpt"]["engine"] == "dummy"  # type: ignore[union-attr]


def test_two_records_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mgpt_edge.runtime.catalogue import catalogue
    from mgpt_edge.runtime.engines.kind import EngineKind
    from mgpt_edge.runtime.engines.native import KIND

    other = EngineKind(
        name=KIND.name, order=7, lowering="cpu", on_gpu=False, element_bytes=4, load=KIND.load, check=KIND.check
    )
    module: ModuleType = sys.modules["mgpt_edge.runtime.engines.cpu"]
    monkeypatch.setattr(module, "SECOND", other, raising=False)
    with pytest.raises(ValueError, match="two records named 'native'"):
        catalogue(runtime_engines, EngineKind)
