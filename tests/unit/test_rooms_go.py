"""The rooms of the init: its packages import downwards only, so each can be read without those above it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

from instant_env.arch import Arch
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment

#: Packages below init/, from top to bottom; "" is the program. A package imports from the lines below its own
#: and from none of its own line.
LAYERS = (
    ("", "ssm"),
    ("internal/boot",),
    ("internal/access", "internal/network", "internal/supervisor", "internal/volumes", "internal/shutdown"),
    ("internal/task", "internal/userdata"),
    ("internal/timeline", "internal/swap", "internal/config", "internal/handover", "internal/inittest",
     "internal/phases"),
    (
        "internal/disk", "internal/imds", "internal/logging", "internal/mount", "internal/netif",
        "internal/netlink",
    ),
    (
        "internal/atomicfile", "internal/boottime", "internal/dhcp", "internal/gpt", "internal/json",
        "internal/instant", "internal/kmod", "internal/paths", "internal/sshkey", "internal/sysfs", "kmsg",
    ),
)  # fmt: skip
LEVELS = {package: level for level, packages in enumerate(LAYERS) for package in packages}
#: Only tests import it.
TESTS_ONLY = "internal/inittest"
MODULE = "instantenv/init"


def relative(path: str) -> str:
    return path.removeprefix(MODULE).removeprefix("/")


def packages() -> Iterator[tuple[str, set[str], set[str]]]:
    """(package, what it imports of the init, what its tests import beside that), as paths below init/."""
    text = subprocess.run(
        [find_go(), "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./init/..."],
        cwd=ROOT, env=go_environment(Arch.X86_64), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    decoder, position = json.JSONDecoder(), 0
    while position < len(text.rstrip()):
        package, position = decoder.raw_decode(text, position)
        position += len(text[position:]) - len(text[position:].lstrip())
        own, tests = (
            {relative(path) for key in keys for path in package.get(key, ()) if path.startswith(MODULE)}
            for keys in (("Imports",), ("TestImports", "XTestImports"))
        )
        yield relative(package["ImportPath"]), own, tests


def complaints(graph: dict[str, set[str]]) -> list[str]:
    """What is wrong with the imports, and what to do about it."""
    unknown = sorted(graph.keys() - LEVELS.keys())
    problems = [f"init/{package} has no line in LAYERS: add it above what it imports" for package in unknown]
    for package, imports in sorted(graph.items()):
        for target in sorted(imports & LEVELS.keys()):
            if package in LEVELS and LEVELS[target] <= LEVELS[package]:
                problems.append(
                    f"init/{package} imports init/{target}, which is not below it: hand it a value, a"
                    " function or an interface instead, or move what they share further down"
                )
            if target == TESTS_ONLY:
                problems.append(f"init/{package} imports init/{target}, which is for tests")
    return problems


def test_packages_import_downwards_only() -> None:
    found = list(packages())
    problems = complaints({package: own for package, own, _ in found})
    # Tests may use the helpers of inittest from anywhere, and otherwise what their package may use.
    problems += complaints({package: tests - {TESTS_ONLY} - own for package, own, tests in found})
    assert not problems, "\n".join(problems)
    missing = LEVELS.keys() - {package for package, _, _ in found}
    assert not missing, f"LAYERS names packages that are not there: {sorted(missing)}"


def test_an_import_of_a_higher_package_is_found() -> None:
    upwards, sideways = complaints(
        {"internal/logging": {"internal/boot"}, "internal/access": {"internal/network"}}
    )
    assert "init/internal/access imports init/internal/network, which is not below it" in upwards
    assert "init/internal/logging imports init/internal/boot, which is not below it" in sideways
    assert "has no line in LAYERS" in complaints({"internal/new": set()})[0]
    assert "for tests" in complaints({"internal/boot": {TESTS_ONLY}})[0]
    assert not complaints({"internal/boot": {"internal/logging", "internal/access"}})
