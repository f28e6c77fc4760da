"""Packages: imports point downwards only, and no modules import each other in a circle.

docs/architecture.md draws this table. Imports for type checkers and those inside functions count as well.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from instant_env.settings import ROOT

#: From top to bottom. A package imports from the lines below its own, and from no other one of its line.
LAYERS = (
    ("tasks",),
    ("cli",),
    ("harness/run", "bake", "publish"),
    ("harness/figures",),
    ("harness/plan",),
    ("harness",),
    ("service/server",),
    ("service/web", "service/engine"),
    ("service/store",),
    ("service",),
    ("launch",),
    ("ssh",),
    ("cloud",),
    ("localec2",),
    ("localec2/stock", "localec2/api"),
    ("localec2/protocol",),
    ("localec2/volumes",),
    ("localec2/instances",),
    ("localec2/state",),
    ("localec2/network", "localec2/qemu"),
    ("localec2/records",),
    ("programs",),
    ("debian",),
    ("ground",),
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
#: Packages that have such lines of their own inside.
DIVIDED = ("localec2", "harness", "service")
#: What other packages may import of localec2: everything else goes over HTTP.
DOOR = "instant_env.localec2.starter"

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    paths = [root / "tasks.py", *(root / "instant_env").rglob("*.py"), *(root / "harness").rglob("*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in paths if path.is_file()}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a file imports; ``from package import module`` names the module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in inside]
        else:
            continue
        yield from (name for name in names if name in known)


def import_graph(root: Path) -> Graph:
    known = modules(root)
    return {name: set(imported(path, known)) - {name} for name, path in known.items()}


def room_of(module: str, graph: Graph) -> str:
    """``instant_env.localec2.api.server`` is in ``localec2/api``; modules beside packages are the ground."""
    parts = module.removeprefix("instant_env.").split(".")
    packages = {name.rpartition(".")[0] for name in graph}
    if parts[0] in DIVIDED:
        depth = 2 if len(parts) > 2 or module in packages else 1
        return "/".join(parts[:depth]) if len(parts) > 1 else parts[0]
    if parts[0] == "tasks" or len(parts) > 1 or module in packages - {"instant_env"}:
        return parts[0]
    return "ground"


def arrows_back(graph: Graph) -> list[str]:
    """A line for each import that points up or sideways, which says what to turn."""
    lines = []
    for module, targets in sorted(graph.items()):
        room = room_of(module, graph)
        for target in sorted(targets):
            below = room_of(target, graph)
            if room != below and LEVELS[room] >= LEVELS[below]:
                lines.append(
                    f"{module} ({room}) imports {target} ({below}), which is not below it: move what both "
                    f"need into a package below {room}, or hand it in as an argument"
                )
            elif below.startswith("localec2") and not room.startswith("localec2") and target != DOOR:
                lines.append(f"{module} imports {target}: other packages reach localec2 through {DOOR} only")
    return lines


def circle(graph: Graph) -> list[str]:
    """The modules of one circle of imports, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.fixture(scope="module")
def graph() -> Graph:
    return import_graph(ROOT)


def test_every_module_is_in_a_room(graph: Graph) -> None:
    unknown = {room_of(module, graph) for module in graph} - set(LEVELS)
    assert not unknown, f"packages without a place in LAYERS: {sorted(unknown)}"


def test_imports_point_downwards(graph: Graph) -> None:
    assert not (lines := arrows_back(graph)), "\n".join(lines)


def test_no_modules_import_each_other_in_a_circle(graph: Graph) -> None:
    assert not (names := circle(graph)), "turn one of these imports: " + " -> ".join(names)


def test_an_import_that_points_back_and_a_circle_are_seen(tmp_path: Path) -> None:
    for name, text in (
        ("instant_env/cloud/session.py", "from instant_env.launch import launcher"),
        ("instant_env/launch/launcher.py", "def late():\n    import instant_env.cloud.session"),
        ("instant_env/bake/image.py", "from instant_env.localec2.state.mirror import Mirror"),
        ("instant_env/localec2/state/mirror.py", ""),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    made = import_graph(tmp_path)
    past_the_door, up = arrows_back(made)
    assert "instant_env.cloud.session (cloud) imports instant_env.launch.launcher (launch)" in up
    assert "through instant_env.localec2.starter only" in past_the_door
    assert set(circle(made)) == {"instant_env.cloud.session", "instant_env.launch.launcher"}


@pytest.mark.parametrize("folder", ["instant_env", "tests"])
def test_no_folder_has_twenty_names_to_read(folder: str) -> None:
    """A newcomer finds a file by reading a folder's names: past twenty, the folder is two."""
    for directory in [ROOT / folder, *(ROOT / folder).rglob("*/")]:
        names = [path for path in directory.iterdir() if path.suffix in (".py", ".go", ".md")]
        names = [path for path in names if not path.name.endswith("_test.go") and path.name != "__init__.py"]
        assert len(names) <= 20, f"{directory.relative_to(ROOT)} has {len(names)} files: split it up"
